/** Light or dark: the page's own choice (`data-theme`), else the notebook's, else the reader's system. */

const preference = matchMedia("(prefers-color-scheme: dark)");

function current(): boolean {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen === "dark";
  const notebook = document.body?.dataset.jpThemeLight;
  if (notebook) return notebook === "false";
  return preference.matches;
}

export const theme = $state({ dark: current() });

function follow(): void {
  theme.dark = current();
}

preference.addEventListener("change", follow);
const observer = new MutationObserver(follow);
observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
if (document.body) observer.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
