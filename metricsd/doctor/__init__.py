"""Looks at everything that has to work, from the hook to the cloud, and says for each what to do; one file a noun."""
