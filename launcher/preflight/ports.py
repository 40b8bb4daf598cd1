"""Planned ports of this node: can they be had?"""

from __future__ import annotations

from launcher.common.ports import hold_port
from launcher.preflight.model import Finding
from launcher.preflight.site import Site


def check_ports(site: Site) -> Finding:
    """Each engine's planned port can be listened on; a taken one is a failure only with ``inference.strict_ports``."""
    mine = [replica.port for replica in site.layout.replicas if replica.node_ranks[0] == site.node.node_rank]
    taken = []
    for port in mine:
        try:
            hold_port(site.address, port).close()
        except OSError as error:
            taken.append(f"port {port} on {site.address}: {error.strerror}")
    if not taken:
        return Finding(name="ports", ok=True, text=f"{len(mine)} can be listened on" if mine else "none planned")
    if site.config.inference.strict_ports:
        return Finding(name="ports", ok=False, text=f"{'; '.join(taken)} (`inference.strict_ports` is true)")
    return Finding(name="ports", ok=True, text=f"{'; '.join(taken)}; the engine will serve on another one")
