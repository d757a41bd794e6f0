"""The report's looks: dark and light, narrow and wide, and paper."""

STYLE = """
:root{--fg:#1f2328;--bg:#fff;--soft:#59636e;--line:#d1d9e0;--box:#f6f8fa;--link:#0969da;--alarm:#cf222e}
@media (prefers-color-scheme:dark){:root{--fg:#e6edf3;--bg:#0d1117;--soft:#9198a1;--line:#3d444d;--box:#161b22;
--link:#4493f8;--alarm:#ff7b72}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;
color:var(--fg);background:var(--bg);max-width:1200px;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;border-bottom:1px solid var(--line);padding-bottom:.25rem;
margin-top:2rem}h3{font-size:1rem;margin:.75rem 0 .25rem}
a{color:var(--link)}a.entry{font-size:.85em;font-family:ui-monospace,monospace;white-space:nowrap}
.alarm{border:3px solid var(--alarm);padding:.5rem 1rem}
ul{padding-left:1.2rem}time{font-family:ui-monospace,monospace;font-size:.85em;color:var(--soft);white-space:nowrap}
.parts{display:flex;gap:2px;margin:.75rem 0}.part{min-width:max-content;padding:.35rem .5rem;border:1px solid var(--fg);
background:var(--box);font-size:.9em}
.part.detect{border-style:dashed}.part.fence{border-style:double;border-width:3px}.part.promote{border-width:2px}
table{border-collapse:collapse;font-size:.92em;display:block;overflow-x:auto}th,td{border:1px solid var(--line);
padding:.2rem .5rem;text-align:left}td{font-variant-numeric:tabular-nums}
details{border:1px solid var(--line);border-radius:4px;margin:.25rem 0;padding:.25rem .5rem}
details:target{outline:3px solid var(--link)}summary{cursor:pointer;overflow-wrap:anywhere}
pre{overflow-x:auto;font-size:.85em;background:var(--box);padding:.5rem}
svg{max-width:100%;height:auto}footer{margin-top:2rem;color:var(--soft);font-size:.85em}
.lanes text{fill:var(--fg);font:12px system-ui,sans-serif}.lanes .soft{fill:var(--soft)}
.lanes rect{stroke:var(--fg);stroke-width:1;fill:var(--box)}
.lanes .leader{fill:#2da44e}.lanes .candidate{fill:#d4a72c}.lanes .rewinding{fill:#8250df}.lanes .reinit{fill:#cf222e}
.lanes .bootstrapping{fill:#6e7781}.lanes .reign{fill:none;stroke-width:3}.lanes .outage{fill:var(--alarm);opacity:.25;
stroke:none}.lanes .on{fill:#fff}
@media print{body{max-width:none;font-size:11px}details>pre{display:none}
a{color:inherit}section{break-inside:avoid-page}}
@media (max-width:600px){.parts{flex-direction:column}}
"""
