"""tattle reports SSH logins and logouts on an EC2 instance to Amazon EventBridge."""

__version__ = "1.1.0"
