"""What is wrong with how a page looks: in a browser, at a width."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import Browser

#: Phones, and laptops.
WIDTHS = (390, 1280)

#: Text is cut off where an element that cannot be scrolled, or the window, ends before it does.
#: Tables and code may be scrolled sideways within their own box, which then has to be seen whole.
#: A cell of a table is squeezed when its text is a column much higher than it is wide.
FAULTS = """
(() => {
  const root = document.documentElement, width = Math.min(WIDTH, root.clientWidth);
  const found = new Set();
  const short = (text) => text.trim().replace(/\\s+/g, " ").slice(0, 40);
  const edges = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getBoundingClientRect();
  };

  for (const image of document.images)
    if (image.naturalWidth === 0) found.add(`broken image: ${image.getAttribute("src")}`);
  if (root.scrollWidth > width) found.add(`the page is ${root.scrollWidth} wide`);

  const article = document.querySelector("article") ?? document.body;
  const texts = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    let box = edges(text), seen = text.data.trim() && box.width > 0, cut = false;
    for (let outer = text.parentElement; seen && outer !== root; outer = outer.parentElement) {
      const { overflowX, overflowY, visibility } = getComputedStyle(outer);
      const edge = outer.getBoundingClientRect();
      if (visibility === "hidden" || edge.width === 1) seen = false;  // for screen readers
      if (outer === document.body || overflowX === "visible") continue;
      const scrolls = overflowX === "auto" || overflowX === "scroll";
      if (scrolls && outer.matches(".table-wrapper, pre, .sig")) box = edge;
      else if (box.right > edge.right + 1 || box.left < edge.left - 1) cut = true;
      if (overflowY === "hidden" && box.bottom > edge.bottom + 1) cut = true;
    }
    if (seen && (cut || box.right > width + 1 || box.left < -1))
      found.add(`cut off: ${short(text.data)}`);
  }

  for (const cell of article.querySelectorAll("td, th")) {
    const box = edges(cell);
    if (box.width < 120 && box.height > 3 * box.width)
      found.add(`squeezed: ${short(cell.innerText)}`);
  }
  return [...found];
})()
"""

#: Of a picture: text outside of what it shows.
OUTSIDE = """
[...document.querySelectorAll("text")].filter((text) => {
  const box = text.getBoundingClientRect();
  const whole = document.documentElement.getBoundingClientRect();
  return text.textContent.trim() && (box.left < whole.left - 1 || box.right > whole.right + 1
    || box.top < whole.top - 1 || box.bottom > whole.bottom + 1);
}).map((text) => `outside of the picture: ${text.textContent.trim().slice(0, 40)}`)
"""


def faults_of_page(browser: Browser, page: Path) -> list[str]:
    """A line for each fault, with the width at which it is seen."""
    found: list[str] = []
    for width in WIDTHS:
        browser.resize(width, 900)
        browser.open(page.as_uri())
        browser.evaluate("for (const image of document.images) image.loading = 'eager'")
        browser.wait_for("[...document.images].every((image) => image.complete)")
        faults = browser.evaluate(FAULTS.replace("WIDTH", str(width)))
        found += [f"{page.name} at {width}: {fault}" for fault in faults]
    return found


def faults_of_picture(browser: Browser, picture: Path) -> list[str]:
    """A line for each text of an SVG that is not seen whole."""
    browser.resize(1280, 900)
    browser.open(picture.as_uri())
    return [f"{picture.name}: {fault}" for fault in browser.evaluate(OUTSIDE)]
