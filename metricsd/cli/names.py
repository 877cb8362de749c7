"""The local names behind hashes that travelled: what another device calls `h:...` may be a project of this one.

Without a login there are no such hashes, and a name that this machine does not know stays a hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from metricsd.config import Paths, load_config
from metricsd.store.summary import Address
from metricsd.totals import Cell

if TYPE_CHECKING:
    from metricsd.sync.outgoing import Outgoing

HASHED = ("h:", "custom:")


class Names:
    """Hashes and names of one home. The login is read when a hash is met, because few reports meet one."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    @cached_property
    def _ways(self) -> tuple[Outgoing, Outgoing] | None:
        """How names travel from here, and how they would travel if this home shared none; None without a login."""
        if not self._paths.credentials.exists():
            return None
        from metricsd.identity import find_credentials
        from metricsd.sync.outgoing import Outgoing

        found = find_credentials(self._paths)
        if found is None:
            return None
        settings = load_config(self._paths).sync
        hiding = settings._replace(level="metrics", share_projects=())
        return Outgoing(found.tenant_key, settings), Outgoing(found.tenant_key, hiding)

    @property
    def address(self) -> Address | None:
        """Return what makes a session's record id; None without a login, when it is `<app>/<id>`."""
        return self._ways[0].session_id if self._ways is not None else None

    def need_address(self) -> Address:
        """Return the same for who asks only when it matters; without a login the plain form."""
        return self.address or (lambda app, session_id: f"{app}/{session_id}")

    def plain_cells(self, cells: list[Cell]) -> list[Cell]:
        """Return cells with local names in place of the hashes that are known here."""
        projects = self._plain({cell.project for cell in cells}, "project")
        tools = self._plain({cell.tool for cell in cells}, "tool")
        if not projects and not tools:
            return cells
        return [
            cell._replace(project=projects.get(cell.project, cell.project), tool=tools.get(cell.tool, cell.tool))
            for cell in cells
        ]

    def plain_projects(self, names: Iterable[str | None]) -> dict[str | None, str | None]:
        """Return {hash: name} of the hashed projects among these whose name is among them too."""
        return self._plain(set(names), "project")

    def _plain(self, names: set[str | None], what: str) -> dict[str | None, str | None]:
        if not any(name is not None and name.startswith(HASHED) for name in names) or self._ways is None:
            return {}
        hide = self._ways[1].project if what == "project" else self._ways[1].tool
        known = {hide(name): name for name in names if name is not None and not name.startswith(HASHED)}
        return {name: known[name] for name in names if name in known and name is not None and name.startswith(HASHED)}
