"""Style of a report's page: light and dark, on a desk, a phone and paper."""

STYLE = """
:root {
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c1f23; --soft: #5c6570; --line: #e2e5e9;
  --blue: #0060a8; --good: #0b6b46; --good-bg: #e6f4ed; --bad: #a92e06; --bad-bg: #fdeae3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e8eaed; --soft: #a0a9b4; --line: #323940;
    --blue: #7cc0f5; --good: #6fd3a5; --good-bg: #14362a; --bad: #ff9c78; --bad-bg: #47200f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3rem; }
a { color: var(--blue); }
h1 { font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; margin: 0 0 1.25rem;
  letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .35rem; letter-spacing: -0.01em; }
.eyebrow { margin: 0 0 .4rem; color: var(--soft); font-size: .85rem; font-weight: 600;
  letter-spacing: .04em; }
dl { margin: 0; }
dd { margin: 0; }
dt { color: var(--soft); font-size: .8rem; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin-bottom: 1.5rem; }
.facts dd { font-weight: 600; font-variant-numeric: tabular-nums; }
.verdict { border-radius: .6rem; padding: .9rem 1.2rem; margin-bottom: 1rem; }
.verdict p { margin: 0; font-size: 1.1rem; font-weight: 650; }
.verdict ul { margin: .6rem 0 0; padding-left: 1.2rem; font-size: .92rem; }
.verdict li { margin: .2rem 0; }
.verdict li a { color: inherit; }
.verdict.good { background: var(--good-bg); color: var(--good); }
.verdict.bad { background: var(--bad-bg); color: var(--bad); }
nav { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; }
nav a { display: block; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .7rem 1rem; text-decoration: none; color: var(--ink); }
nav a:hover, nav a:focus-visible { border-color: var(--blue); }
nav b, nav span { display: block; }
nav span { font-size: .88rem; color: var(--soft); }
nav .good span { color: var(--good); }
nav .bad span { color: var(--bad); font-weight: 600; }
section { margin: 2.25rem 0 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .8rem; padding: 1.5rem 1.5rem 1rem; }
.claim, .absent p { margin: 0 0 1.1rem; color: var(--soft); max-width: 58rem; }
figure { margin: 0 auto 1.25rem; max-width: 100%; width: fit-content; padding: .5rem;
  background: #fff; border-radius: .5rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: .42rem .8rem .42rem 0; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .8rem; border-bottom: 2px solid var(--line);
  white-space: nowrap; }
tbody td { border-top: 1px solid var(--line); }
tbody .first th { border-top: 1px solid var(--line); }
tbody tr:first-child > * { border-top: 0; }
tbody tr:not(.first) th { color: transparent; user-select: none; }
.value { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.value { font-weight: 600; }
.limits { padding-left: .8rem; white-space: nowrap; }
td.limits { color: var(--soft); font-variant-numeric: tabular-nums; }
.verdict-cell { padding-right: 0; text-align: right; }
td small { display: block; color: var(--soft); font-size: .8rem; max-width: 34rem;
  overflow-wrap: anywhere; }
sup { line-height: 0; font-size: .75em; }
.badge { display: inline-block; border-radius: 1rem; padding: .05rem .6rem; font-size: .78rem;
  font-weight: 600; white-space: nowrap; }
.good .badge { background: var(--good-bg); color: var(--good); }
.bad .badge { background: var(--bad-bg); color: var(--bad); }
tr.bad td.value { color: var(--bad); }
.seconds { margin: .6rem 0 0; text-align: right; color: var(--soft); font-size: .8rem; }
footer { padding-top: 2.25rem; padding-bottom: 3rem; font-size: .9rem; }
footer p { color: var(--soft); }
.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr));
  gap: .6rem 1.5rem; }
.settings .long { grid-column: 1 / -1; }
.settings dd { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  header, main, footer { padding-left: .9rem; padding-right: .9rem; }
  header { padding-top: 1.6rem; }
  section { padding: 1.1rem .9rem .8rem; border-radius: .6rem; }
  nav, .settings { grid-template-columns: repeat(2, 1fr); }
  figure { margin-left: -.4rem; margin-right: -.4rem; max-width: none; width: auto; }
  figure img { max-width: none; width: 42rem; } /* its letters stay legible: scroll sideways */
  .facts { gap: .6rem 1.6rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody { display: block; }
  tbody tr { display: grid; grid-template-columns: 1fr auto; column-gap: .8rem;
    padding: .55rem 0; border-top: 1px solid var(--line); }
  tbody tr:first-child { border-top: 0; }
  tbody tr > th, tbody tr > td { border: 0 !important; padding: 0; }
  tbody tr th { grid-column: 1 / 3; color: var(--ink) !important; font-size: .95rem; }
  tbody tr:not(.first) th { display: none; }
  .case { grid-column: 1 / 3; }
  .limits { padding-left: 0 !important; }
  .verdict-cell { text-align: right; }
}
@media print {
  :root {
    --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --blue: #000;
    --good: #0b6b46; --good-bg: #fff; --bad: #a92e06; --bad-bg: #fff;
  }
  @page { margin: 16mm; }
  html { font-size: 11px; } /* everything else is measured by it */
  body { font-size: 1rem; }
  header, main, footer { max-width: none; padding: 0; }
  nav { display: none; }
  section { border: 0; padding: 0; }
  .verdict { border: 1px solid currentColor; }
  .badge { padding: 0; }
  figure { width: auto; padding: 0; overflow: visible; break-inside: avoid; }
  figure img { width: 100%; }
  tr, .verdict, h2, .claim { break-inside: avoid; }
  h2, .claim { break-after: avoid; }
  thead { display: table-header-group; }
}
""".strip()
