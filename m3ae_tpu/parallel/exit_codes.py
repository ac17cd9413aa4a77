"""Exit codes of a run's processes, by which a scheduler or `launch_tpu` decides to start it again.

Imports no JAX: it is read on machines that only start runs.
"""

USER_ERROR = 2
"""A mistake that only the user can correct. Starting again does not help."""
PREEMPTED = 75
"""The run was asked to stop, and has saved. The same command goes on. `EX_TEMPFAIL` of sysexits.h.
"""
HUNG = 76
"""No step ended any more, so the watchdog ended the run."""
PEER_DIED = 134
"""Another process of the run died. The code is that of SIGABRT, by which JAX ends the others."""
MEANINGS = {
    PREEMPTED: "it was asked to stop, and has saved",
    HUNG: "none of its steps ended any more",
    PEER_DIED: "another of its processes died",
    137: "it was killed; its host may have had too little memory",
}
"""The meanings of codes after which starting again may help."""
