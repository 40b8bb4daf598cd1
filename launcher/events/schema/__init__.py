"""Every kind of event in a run's ``events.jsonl``, as a dataclass.

A line of the log holds the fields of one event, ``event``, the name of its kind, and ``time``. Fields that are None are
left out. ``python -m launcher.events.reference`` renders these classes as a page of the documentation.
"""

from launcher.events.schema.attempt import *  # noqa: F403
from launcher.events.schema.base import *  # noqa: F403
from launcher.events.schema.processes import *  # noqa: F403
from launcher.events.schema.training import *  # noqa: F403
