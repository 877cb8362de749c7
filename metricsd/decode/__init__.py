"""From a line of input to one `Event`: the only place where payloads of AI tools are read.

Decoders are allow-lists: numbers, categories from closed lists, names and opaque ids. They promise that one bad
field costs that field alone, and that nothing but `LineRejected` is ever raised. They must never keep content:
no prompt, command, path, file text, error text, pattern, URL, title or message leaves this package.
"""

from metricsd.decode.dispatch import decode_line
from metricsd.decode.envelope import Line, parse_line

__all__ = ["Line", "decode_line", "parse_line"]
