// The page looks again by itself, while somebody looks at it and has nothing in hand. Without
// scripts, all works by loading it anew.
"use strict";

const PAUSE = 2000; // ms between two looks; more if the store takes long to answer
const LONGEST = 30000; // while it does not answer

const toggle = document.getElementById("live");
const main = () => document.querySelector("main[data-live]");
let timer = 0;
let pause = PAUSE;

function isInHand() {
  const at = document.activeElement;
  return (
    document.hidden ||
    document.querySelector("main input:checked") !== null ||
    (at !== null && at.matches("main input, main button, main summary, main a")) ||
    !document.getSelection().isCollapsed
  );
}

async function look() {
  if (!isInHand()) {
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main[data-live]");
      if (!answer.ok || fresh === null) throw new Error(answer.statusText);
      const open = [...main().querySelectorAll("details")].map((one) => one.open);
      if (!isInHand() && fresh.innerHTML !== main().innerHTML) {
        main().replaceWith(fresh);
        main().querySelectorAll("details").forEach((one, at) => {
          if (at < open.length) one.open = open[at];
        });
      }
      document.querySelector("footer").replaceWith(page.querySelector("footer"));
      toggle.classList.remove("lost");
      pause = Math.max(PAUSE, 10 * (performance.now() - began));
    } catch {
      toggle.classList.add("lost");
      pause = Math.min(LONGEST, 2 * pause);
    }
  }
  timer = setTimeout(look, pause);
}

function set(on) {
  clearTimeout(timer);
  toggle.setAttribute("aria-pressed", String(on));
  if (on) timer = setTimeout(look, PAUSE);
}

if (main() !== null) {
  toggle.hidden = false;
  set(localStorage.getItem("liteq.live") !== "off");
  toggle.addEventListener("click", () => {
    const on = toggle.getAttribute("aria-pressed") !== "true";
    localStorage.setItem("liteq.live", on ? "on" : "off");
    set(on);
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    document.querySelectorAll('main input[name="id"]').forEach((one) => {
      one.checked = event.target.checked;
    });
  }
});

document.addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  if (event.key === "/" && search !== null && !event.target.matches("input")) {
    event.preventDefault();
    search.focus();
  }
});
