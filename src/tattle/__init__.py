"""tattle reports SSH logins and logouts on an EC2 instance to Amazon EventBridge."""

__version__ = "1.2.0"
RELEASED = "2026-11-28"  # when that version was made, whenever it is built
