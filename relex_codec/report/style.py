"""How the page looks, on a screen, a phone and paper, and the little that it does by itself."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: 0.5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid #ddd; padding-bottom: 0.25rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.25rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
dl { display: grid; grid-template-columns: minmax(8rem, 15rem) 1fr; gap: 0.15rem 1rem; margin: 0.5rem 0; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0.5rem 0; }
.note { color: #555; font-size: 0.875rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; width: 100%; }
th, td { text-align: left; padding: 0.2rem 0.75rem 0.2rem 0; border-bottom: 1px solid #eee; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.command { display: flex; gap: 0.5rem; align-items: flex-start; margin: 0.35rem 0; }
.command code { flex: 1; background: #f4f6f8; padding: 0.35rem 0.6rem; border-radius: 4px; overflow-wrap: anywhere; }
button { font: inherit; font-size: 0.875rem; padding: 0.3rem 0.7rem; border: 1px solid #bbb;
  border-radius: 4px; background: #fff; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dt { margin-top: 0.4rem; } main { padding: 0.75rem; } }
@media print {
  body { font-size: 10pt; } main { max-width: none; padding: 0; } button, .bk-Select { display: none; }
  section, figure, tr, .command { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide { overflow: visible; }
}
"""

SCRIPT: Final = """
for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
    catch (error) {  // from a file some browsers do not allow it: select it instead
      const range = document.createRange(); range.selectNodeContents(code);
      const selection = getSelection(); selection.removeAllRanges(); selection.addRange(range);
    }
  });
}
"""
