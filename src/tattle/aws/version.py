"""Which botocore is packed with tattle."""

import botocore

BOTOCORE: str = botocore.__version__
