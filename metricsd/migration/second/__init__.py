"""The second reader: what a source holds, read by code that shares nothing with the first reader.

JSON by the standard library, times by arithmetic, identities and names written down anew from their descriptions.
Only the closed lists of program names and file extensions are common, because they are data. A test looks at what
this folder imports.
"""
