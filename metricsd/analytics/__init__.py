"""The figures behind reports and dashboards: pure functions, totals in and answers out.

One noun a file. Nothing here reads a store, a clock or a setting, so that the local daemon and the cloud give the
same answer for the same totals. No function returns NaN or infinity, whatever the totals are.
"""
