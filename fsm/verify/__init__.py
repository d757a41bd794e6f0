"""What must hold of the logs of a real cluster, whatever happened to it: checks of recorded entries. Pure.

`matriarch replay` asks whether the table decided what was recorded. This asks whether what was recorded was right: each
check keeps its own small accounts of what the events said (leases, keys, the fence), and does not ask the table.
"""
