"""Every environment variable of the launcher's own, by its name; what sets it, and what it holds."""

from __future__ import annotations

LAUNCHER_ADDRESS = "LAUNCHER_ADDRESS"
"""This node's address, as its peers reach it; a person may set it on nodes with several networks."""

LAUNCHER_ATTEMPT = "LAUNCHER_ATTEMPT"
"""Number of the attempt, from 1: taken once for all nodes by the job script or the local cluster."""

LAUNCHER_ATTEMPT_DIR = "LAUNCHER_ATTEMPT_DIR"
"""Directory of the attempt: its event log, layout and logs."""

LAUNCHER_AWAITS_WEIGHTS = "LAUNCHER_AWAITS_WEIGHTS"
"""``1`` for an engine that serves nothing before it has received a version of the weights."""

LAUNCHER_BRIDGE_NCCL_CHANNELS = "LAUNCHER_BRIDGE_NCCL_CHANNELS"
"""A person's: most channels that NCCL may use for weights, and with them most GPU blocks."""

LAUNCHER_CONTROL = "LAUNCHER_CONTROL"
"""``host:port`` of the run's control service."""

LAUNCHER_ENGINE_MASTER = "LAUNCHER_ENGINE_MASTER"
"""``host:port`` at which the parts of a replica over several nodes meet."""

LAUNCHER_EXIT_FILE = "LAUNCHER_EXIT_FILE"
"""File in which node 0 leaves the run's exit code for the job script; beside it lie the script's requests."""

LAUNCHER_HOSTNAME = "LAUNCHER_HOSTNAME"
"""Name of this node in the nodelist."""

LAUNCHER_INFERENCE_API_KEY = "LAUNCHER_INFERENCE_API_KEY"
"""Key for the engines' HTTP interface; secret."""

LAUNCHER_INFERENCE_URLS = "LAUNCHER_INFERENCE_URLS"
"""Base URLs of the replicas when the trainers were started, separated by commas."""

LAUNCHER_LOCAL_HOSTNAMES = "LAUNCHER_LOCAL_HOSTNAMES"
"""Names of the simulated nodes of a local run, separated by commas."""

LAUNCHER_LOCAL_NODE_RANK = "LAUNCHER_LOCAL_NODE_RANK"
"""Which of the simulated nodes of a local run this is."""

LAUNCHER_MODEL_PATH = "LAUNCHER_MODEL_PATH"
"""Directory of the model that is trained and served."""

LAUNCHER_NODE_RANK = "LAUNCHER_NODE_RANK"
"""Index of this process's node in the layout."""

LAUNCHER_PARENT_PID = "LAUNCHER_PARENT_PID"
"""Process id of the agent, from it to the program that becomes a worker; removed before the worker's own program."""

LAUNCHER_PORT = "LAUNCHER_PORT"
"""Planned port of an engine."""

LAUNCHER_PROCESS = "LAUNCHER_PROCESS"
"""Name of this process in the layout, such as ``trainer-0000``; its log has the same name."""

LAUNCHER_RESTART_COUNT = "LAUNCHER_RESTART_COUNT"
"""How often this replica, or all trainer ranks together, were restarted in this attempt."""

LAUNCHER_ROLE = "LAUNCHER_ROLE"
"""``trainer``, ``inference`` or ``helper``."""

LAUNCHER_ROLE_RANK = "LAUNCHER_ROLE_RANK"
"""Rank of this process's node among the nodes of its role."""

LAUNCHER_RUN_DIR = "LAUNCHER_RUN_DIR"
"""The run directory."""

LAUNCHER_SCRATCH = "LAUNCHER_SCRATCH"
"""Directory of this node alone, for sockets and the like; the shim removes it after the run."""

LAUNCHER_STOP_FILE = "LAUNCHER_STOP_FILE"
"""File of this node that exists once the run has been requested to stop."""

LAUNCHER_TOKEN = "LAUNCHER_TOKEN"
"""Secret of the attempt, by which its processes know each other; new at each start, and written nowhere."""
