// Sorts tables, moves the boundary between two pictures, plays videos, copies text. The page is complete without.
"use strict";

// Tables: a heading sorts by its column, then the other way round; missing numbers stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const number = head.dataset.kind === "number";
      const before = head.getAttribute("aria-sort");
      const rising = before ? before === "descending" : !number;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const read = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.value ?? cell.textContent;
        return number ? parseFloat(text) : text;
      };
      const order = (a, b) => {
        if (!number) return a.localeCompare(b, undefined, { numeric: true });
        return a - b;
      };
      const rows = [...body.rows].map((row) => ({ row, value: read(row) }));
      const known = rows.filter(({ value }) => !Number.isNaN(value));
      const missing = rows.filter(({ value }) => Number.isNaN(value));
      known.sort((a, b) => (rising ? order(a.value, b.value) : order(b.value, a.value)));
      body.append(...[...known, ...missing].map(({ row }) => row));
    });
  });
}

// Scenes: two pictures of one view, one above the other, with a boundary that moves.
for (const scene of document.querySelectorAll(".scene")) {
  const box = scene.querySelector(".compare");
  const stage = box.querySelector(".stage");
  const split = box.querySelector(".split");
  const sides = [
    { select: box.querySelector(".pick-left"), image: stage.querySelector(".over"), name: stage.querySelector(".at-left") },
    { select: box.querySelector(".pick-right"), image: stage.querySelector(".under"), name: stage.querySelector(".at-right") },
  ];
  const view = box.querySelector(".pick-view");
  const pictures = new Map();
  for (const image of scene.querySelectorAll("img[data-key]")) pictures.set(image.dataset.key, image);

  const move = () => {
    stage.style.setProperty("--split", `${split.value}%`);
    const [left, right] = sides.map((side) => side.name.textContent);
    split.setAttribute("aria-valuetext", `${split.value} % ${left}, ${100 - split.value} % ${right}`);
  };
  const show = () => {
    for (const { select, image, name } of sides) {
      const found = pictures.get(`${view ? view.value : 0}/${select.value}`);
      if (found) image.src = found.src;
      else image.removeAttribute("src");
      image.alt = found ? found.alt : "No picture";
      name.textContent = select.selectedOptions[0].textContent;
    }
    move();
  };
  const drag = (event) => {
    const place = stage.getBoundingClientRect();
    split.value = Math.round((100 * (event.clientX - place.left)) / place.width);
    move();
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) drag(event);
  });
  split.addEventListener("input", move);
  for (const { select } of sides) select.addEventListener("change", show);
  view?.addEventListener("change", show);
  box.hidden = false;
  show();
}

// Videos of one scene: all from the beginning, at once.
for (const flight of document.querySelectorAll(".flight")) {
  const button = flight.querySelector(".play-all");
  if (!button) continue;
  const videos = [...flight.querySelectorAll("video")];
  button.hidden = false;
  button.addEventListener("click", () => {
    for (const video of videos) {
      video.currentTime = 0;
      video.play();
    }
  });
}

// Text to copy.
for (const button of document.querySelectorAll(".copy")) {
  const text = button.closest("article").querySelector("pre");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      getSelection().selectAllChildren(text); // where a browser refuses: selected, for Ctrl-C
      return;
    }
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 2000);
  });
}
