/** The bundle: draws every placeholder of its page, and exports anywidget's `render`. */

import { mount, unmount } from "svelte";
import FigureView from "./FigureView.svelte";
import type { Figure, Labels } from "./figure";
import { theme } from "./theme.svelte";
import "./style.css";
import "./page.css";

interface Model {
  get(name: "figure"): Figure;
  set(name: "labels", labels: Labels): void;
  save_changes(): void;
}

function draw(target: HTMLElement, figure: Figure, onlabels?: (labels: Labels) => void): Record<string, unknown> {
  return mount(FigureView, { target, props: { figure }, context: new Map([["labels", onlabels]]) });
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  el.classList.add("vesalius");
  const view = draw(el, model.get("figure"), (labels) => {
    model.set("labels", labels);
    model.save_changes();
  });
  return () => unmount(view);
}

async function drawPage(): Promise<void> {
  for (const data of document.querySelectorAll("script[type='application/vesalius-figure+json']")) {
    draw(data.parentElement!, JSON.parse(data.textContent!));
    await new Promise((resume) => setTimeout(resume));
  }
  document.documentElement.dataset.drawn = "all";
}

function offerTheme(): void {
  const button = document.querySelector<HTMLButtonElement>("button.vesalius-theme");
  if (!button) return;
  button.hidden = false;
  button.onclick = () => (document.documentElement.dataset.theme = theme.dark ? "light" : "dark");
}

offerTheme();
void drawPage();

export default { render };
