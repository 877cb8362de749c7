"""The daemon as a service of the user's login: a systemd user unit or a launchd agent, and an answer where neither is."""
