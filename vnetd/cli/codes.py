"""vnetctl's exit codes. argparse itself ends with 2, wrong usage."""

OK = 0
FAILED = 1
DRIFTED = 3
UNREACHABLE = 4
NOT_AUTHORISED = 5
