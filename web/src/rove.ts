/** Arrow keys move among the tiles of a figure, by where they stand; Tab visits the one last stood on. */

export function rove(event: KeyboardEvent): void {
  const tile = event.currentTarget as HTMLElement;
  const tiles = [...tile.closest("[data-tiles]")!.querySelectorAll<HTMLElement>("[data-tile]")];
  const here = tiles.indexOf(tile);
  const next = tiles[step(event.key, tiles, here)];
  if (!next) return;
  event.preventDefault();
  tiles[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function step(key: string, tiles: HTMLElement[], here: number): number {
  if (key === "ArrowRight") return here + 1;
  if (key === "ArrowLeft") return here - 1;
  if (key === "Home") return 0;
  if (key === "End") return tiles.length - 1;
  const down = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (!down) return -1;
  const { x, y } = tiles[here].getBoundingClientRect();
  let [best, least] = [-1, Infinity];
  tiles.forEach((tile, i) => {
    const box = tile.getBoundingClientRect();
    const away = down * (box.y - y);
    const cost = away * 1e4 + Math.abs(box.x - x);
    if (away > 4 && cost < least) [best, least] = [i, cost];
  });
  return best;
}
