"""A worked example of a plug-in: two descriptions become one, everything else is left to the fallback.

metricsd runs this file in a process of its own, without the environment, with 50 ms for an answer and little
memory. It gets copies and can change nothing but what it returns. Whatever goes wrong here, the rule's fallback
decides and the log says so.
"""

MAX_CHARS = 1000


def resolve(base, local, remote, context):
    """Return the fields that this plug-in decides, by name; a field that it leaves out goes to the fallback.

    base, local, remote   the fields that both sides agreed on last ({} if never), here, and in the cloud
    context               {"type", "id", "fields": the names that clash, "stamps": {"local": {...}, "remote": {...}}}
    """
    if "description" not in context["fields"]:
        return {}
    old = base.get("description") or ""
    texts = {local.get("description") or "", remote.get("description") or ""}
    # An order that does not depend on who asks, so that every device makes the same text.
    parts = sorted(text for text in texts if text and text != old)
    joined = " / ".join(parts)
    return {"description": joined} if 0 < len(joined) <= MAX_CHARS else {}
