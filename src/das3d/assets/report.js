// Order and choice of the parts, large pictures, and the view in 3D. Without scripts the page shows everything but these.
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
let view = null;

function open(title, content) {
  stage.replaceChildren(content);
  dialog.querySelector("h2").textContent = title;
  dialog.showModal();
}
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
dialog.addEventListener("close", () => {
  view?.dispose();
  view = null;
  stage.replaceChildren();
});

for (const card of document.querySelectorAll(".card")) {
  const name = card.dataset.name;
  for (const image of card.querySelectorAll(".pictures img")) {
    image.addEventListener("click", () => open(image.alt, Object.assign(new Image(), { src: image.src, alt: image.alt })));
  }
  const button = card.querySelector(".open-3d");
  if (!button) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    open(name, document.createElement("div"));
    const place = stage.firstElementChild;
    place.style.height = "100%";
    try {
      const { createViewer, unpack } = await import("das3d/viewer");
      const surface = JSON.parse(card.querySelector(".surface").textContent);
      const rgb = card.querySelector('.pictures img[alt^="RGB of "]');
      const grid = await unpack({ ...surface, rgb: rgb && rgb.src });
      if (place.isConnected) view = createViewer(place, { ...grid, label: `${name} in 3D` });
    } catch (error) {
      place.append(Object.assign(document.createElement("p"), { textContent: `The 3D view failed: ${error.message}` }));
    }
  });
}

const controls = document.querySelector(".controls");
if (controls) {
  const list = document.querySelector(".cards");
  const cards = [...list.children]; // mistakes first
  const orders = {
    high: (a, b) => b.dataset.score - a.dataset.score,
    low: (a, b) => a.dataset.score - b.dataset.score,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  };
  const choose = () => {
    const { outcome, kind, order } = Object.fromEntries(new FormData(controls));
    list.append(...(order ? [...cards].sort(orders[order]) : cards));
    for (const card of cards) {
      card.hidden = (outcome && card.dataset.outcome !== outcome) || (kind && card.dataset.kind !== kind);
    }
    controls.querySelector("output").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} parts`;
  };
  controls.hidden = false;
  controls.addEventListener("change", choose);
  controls.addEventListener("submit", (event) => event.preventDefault());
  choose();
}
