/**
 * A depth grid as a surface that can be turned, coloured by heat, RGB or depth.
 *
 *   import { createViewer, unpack } from "das3d/viewer";
 *   const view = createViewer(element, await unpack(surface));       // `surface`: JSON of das3d.surfaces.Surface
 *   const view = createViewer(element, { width, height, depth });    // or one's own arrays
 *   view.colour("rgb");
 *   view.dispose();
 *
 * createViewer(element, options) fills `element`, whose height the page sets. Options:
 *   width, height  columns and rows of the grid
 *   depth          Float32Array, row by row, growing away from the camera; NaN where nothing was measured
 *   pitch          distance between two columns in the unit of depth; null: the relief is scaled to a third of the width
 *   rgb            Uint8Array (3 a point) or null
 *   heat           Float32Array or null
 *   high           the heat that is painted in full red (1)
 *   colour         "heat", "rgb" or "depth" at the start (the first of them that there is)
 *   toolbar        whether to show buttons for colour, relief and view (true)
 *   label          what a screen reader calls the picture
 * It returns { colours, colour(name), high(value), relief(factor), reset(), resize(), dispose(), canvas }. `colours` lists the
 * modes that there are, `high` changes the option of that name, `relief` exaggerates heights, `resize` is only needed where
 * ResizeObserver misses a change.
 *
 * Nothing is invented: two points are joined only where the step between them is less than 80 degrees steep and no point is
 * missing; points that nothing joins are drawn as points. Drag turns, wheel or pinch zooms, right drag or two fingers move;
 * arrow keys turn, + and - zoom, Home goes back.
 *
 * The page needs an import map with "three" and "das3d/viewer"; das3d.surfaces.import_map() writes it, with data URIs for a
 * page that is one file. Everything is drawn on demand, so an idle view costs nothing.
 */
import {
  AmbientLight, BufferAttribute, BufferGeometry, Color, DirectionalLight, DoubleSide, Group, Mesh, MeshLambertMaterial,
  OrbitControls, PerspectiveCamera, Points, PointsMaterial, Scene, Spherical, SRGBColorSpace, WebGLRenderer,
} from "three";

const STEEPEST = Math.tan((80 * Math.PI) / 180); // of a step that is joined
const RELIEFS = [1, 2, 4];
const NAMES = { heat: "Heat", rgb: "RGB", depth: "Depth" };
// Turbo (A. Mikhailov, 2019) and viridis at equal steps; between them colours are mixed.
export const TURBO = (
  "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 b11901 7a0402"
).split(" ");
const VIRIDIS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725".split(" ");

const STYLE = `
:host { display: block; position: relative; width: 100%; height: 100%; min-height: 8rem; overflow: hidden; }
canvas { display: block; width: 100%; height: 100%; outline-offset: -2px; cursor: grab; touch-action: none; }
canvas:active { cursor: grabbing; }
.bar { position: absolute; inset: auto .5rem .5rem; display: flex; flex-wrap: wrap; gap: .5rem; pointer-events: none; }
.group { display: flex; pointer-events: auto; border-radius: .4rem; overflow: hidden; border: 1px solid #8888; }
button { font: 500 .8rem/1.2 system-ui, sans-serif; padding: .45rem .7rem; border: 0; cursor: pointer; }
button { background: #fffd; color: #222; }
button + button { border-left: 1px solid #8884; }
button[aria-pressed="true"] { background: #2257bf; color: #fff; }
button:focus-visible { outline: 2px solid #2257bf; outline-offset: -3px; }
@media (prefers-color-scheme: dark) { button { background: #222d; color: #eee; } }
p { font: 1rem/1.4 system-ui, sans-serif; margin: 1rem; }
@media print { .bar { display: none; } }
`;

export function createViewer(element, options) {
  const grid = { pitch: null, rgb: null, heat: null, high: 1, toolbar: true, label: "Part in 3D", ...options };
  check(grid);
  const host = document.createElement("div");
  const root = host.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  element.append(host);

  let renderer;
  try {
    renderer = new WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true }); // kept for printing
  } catch {
    const textContent = "The 3D view needs WebGL, which this browser does not offer.";
    root.append(Object.assign(document.createElement("p"), { textContent }));
    const nothing = () => {};
    const dispose = () => host.remove(), blind = { colours: [], canvas: null, dispose };
    return { ...blind, colour: nothing, high: nothing, relief: nothing, reset: nothing, resize: nothing };
  }
  renderer.outputColorSpace = SRGBColorSpace;
  const canvas = renderer.domElement;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", grid.label);
  root.append(canvas);

  const surface = buildSurface(grid);
  const scene = new Scene();
  const light = new DirectionalLight(0xffffff, 2.2);
  const part = new Group().add(surface.mesh, surface.loose);
  part.rotation.x = -Math.PI / 2; // lay it on the floor, so that turning goes round its height
  scene.add(part, new AmbientLight(0xffffff, 1.1), light, light.target);
  const camera = new PerspectiveCamera(30, 1, 0.01, 100);
  const controls = new OrbitControls(camera, canvas);
  controls.zoomSpeed = 1.5;
  controls.minDistance = 0.2;
  controls.maxDistance = 8;
  let pending = 0, shown = "";
  const draw = () => {
    pending ||= requestAnimationFrame(() => {
      pending = 0;
      // Light from the viewer's upper left, so that relief shows from every side.
      light.position.set(-0.8, 0.9, 1).applyQuaternion(camera.quaternion).add(camera.position);
      light.target.position.copy(controls.target);
      renderer.render(scene, camera);
    });
  };
  controls.addEventListener("change", draw);

  const view = {
    colours: ["heat", "rgb", "depth"].filter((name) => name === "depth" || grid[name]),
    canvas,
    colour(name) {
      if (!view.colours.includes(name)) {
        throw new RangeError(`colour: expected one of ${view.colours.join(", ")}, found ${name}`);
      }
      shown = name;
      surface.paint(colours(grid, surface, name));
      press(bar, "colour", name);
      draw();
    },
    high(value) {
      grid.high = value;
      view.colour(shown);
    },
    relief(factor) {
      surface.mesh.scale.z = surface.loose.scale.z = factor;
      press(bar, "relief", String(factor));
      draw();
    },
    reset() {
      const distance = (0.7 / Math.tan((camera.fov * Math.PI) / 360)) * Math.max(1, 1 / camera.aspect);
      controls.target.set(0, 0, 0);
      camera.position.setFromSpherical(new Spherical(distance, 0.6, 0.25));
      controls.update();
      draw();
    },
    resize() {
      const width = host.clientWidth, height = host.clientHeight;
      if (!width || !height) return;
      renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
      renderer.setSize(width, height, false);
      camera.aspect = width / height;
      camera.updateProjectionMatrix();
      draw();
    },
    dispose() {
      watch.disconnect();
      cancelAnimationFrame(pending);
      controls.dispose();
      surface.dispose();
      renderer.dispose();
      renderer.forceContextLoss(); // browsers allow only a few contexts at a time
      host.remove();
    },
  };

  const bar = document.createElement("div");
  bar.className = "bar";
  bar.append(
    buttons("colour", "Colour", view.colours.map((name) => [name, NAMES[name]]), view.colour),
    buttons("relief", "Height", RELIEFS.map((factor) => [factor, `Height x ${factor}`]), (factor) => view.relief(factor)),
    buttons("view", "View", [["reset", "Reset"]], view.reset),
  );
  if (grid.toolbar) root.append(bar);
  canvas.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const zoom = { "+": 1 / 1.15, "=": 1 / 1.15, "-": 1.15 }[event.key];
    if (!turn && !zoom && event.key !== "Home") return;
    event.preventDefault();
    if (event.key === "Home") return view.reset();
    const at = new Spherical().setFromVector3(camera.position.clone().sub(controls.target));
    at.theta += turn ? 0.15 * turn[0] : 0;
    at.phi = Math.min(Math.max(at.phi + (turn ? 0.15 * turn[1] : 0), 0.05), Math.PI - 0.05);
    at.radius = Math.min(Math.max(at.radius * (zoom || 1), controls.minDistance), controls.maxDistance);
    camera.position.setFromSpherical(at).add(controls.target);
    controls.update();
    draw();
  });

  const watch = new ResizeObserver(() => view.resize());
  watch.observe(host);
  view.resize();
  view.reset();
  view.relief(1);
  view.colour(view.colours.includes(grid.colour) ? grid.colour : view.colours[0]);
  return view;
}

/** Options of createViewer from the JSON that das3d.surfaces.Surface.to_json gives. */
export async function unpack(packed) {
  const { width, height, near, step, pitch } = packed;
  const bytes = await inflate(packed.depth);
  const count = width * height;
  const depth = new Float32Array(count);
  // High bytes, then low bytes, of the differences from point to point of codes; code 0 means missing.
  for (let i = 0, code = 0; i < count; i++) {
    code = (code + bytes[i] * 256 + bytes[count + i]) & 0xffff;
    depth[i] = code ? near + (code - 1) * step : NaN;
  }
  const heat = packed.heat ? Float32Array.from(await inflate(packed.heat), (level) => level / 255) : null;
  const rgb = packed.rgb ? await pixels(packed.rgb, width, height) : null;
  return { width, height, depth, pitch, heat, rgb };
}

function check({ width, height, depth, rgb, heat }) {
  const count = width * height;
  for (const [name, array, size] of [["depth", depth, count], ["rgb", rgb, 3 * count], ["heat", heat, count]]) {
    if (name !== "depth" && array === null) continue;
    if (array?.length === size) continue;
    throw new RangeError(`${name}: expected ${size} numbers for ${width} x ${height}, found ${array?.length}`);
  }
}

/** Triangles (three indices each) between neighbouring points whose depths differ by less than `step` a pitch. */
export function join({ width, height, depth }, step) {
  const triangles = [];
  const close = (a, b, reach) => Math.abs(depth[a] - depth[b]) < step * reach; // false for missing points
  const add = (a, corner, b) => {
    if (close(a, corner, 1) && close(corner, b, 1) && close(a, b, Math.SQRT2)) triangles.push(a, corner, b);
  };
  for (let row = 0; row + 1 < height; row++) {
    for (let column = 0; column + 1 < width; column++) {
      const a = row * width + column, b = a + 1, c = a + width, d = c + 1; // a b above c d
      // Along the diagonal that has both its points, so that one missing point costs one triangle.
      if (Number.isFinite(depth[a] + depth[d])) {
        add(a, c, d);
        add(d, b, a);
      } else {
        add(b, a, c);
        add(c, d, b);
      }
    }
  }
  return new Uint32Array(triangles);
}

/** Geometry with the longer side of the grid from -0.5 to 0.5, the middle of the depth range at z = 0. */
function buildSurface(grid) {
  const { width, height, depth, pitch } = grid;
  const known = depth.filter(Number.isFinite).sort(); // typed arrays sort by number
  const quantile = (share) => (known.length ? known[Math.round(share * (known.length - 1))] : 0);
  const near = quantile(0.002), far = quantile(0.998);
  const unit = pitch || Math.max(far - near, 1e-12) / (Math.max(width, height) / 3);
  const size = unit * Math.max(width - 1, height - 1, 1);
  const middle = (near + far) / 2;

  const positions = new Float32Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    positions[3 * i] = ((i % width) - (width - 1) / 2) * (unit / size);
    positions[3 * i + 1] = ((height - 1) / 2 - Math.floor(i / width)) * (unit / size);
    positions[3 * i + 2] = Number.isFinite(depth[i]) ? (middle - depth[i]) / size : 0;
  }
  const triangles = join(grid, unit * STEEPEST);
  const joined = new Uint8Array(width * height);
  for (const i of triangles) joined[i] = 1;
  const position = new BufferAttribute(positions, 3);
  const colour = new BufferAttribute(new Float32Array(3 * width * height), 3);
  const geometry = new BufferGeometry().setAttribute("position", position).setAttribute("color", colour);
  geometry.setIndex(new BufferAttribute(triangles, 1));
  geometry.computeVertexNormals();
  const alone = new BufferGeometry().setAttribute("position", position).setAttribute("color", colour);
  const indices = Uint32Array.from(depth.keys()).filter((i) => Number.isFinite(depth[i]) && !joined[i]);
  alone.setIndex(new BufferAttribute(indices, 1));
  const material = new MeshLambertMaterial({ vertexColors: true, side: DoubleSide });
  const dots = new PointsMaterial({ vertexColors: true, size: unit / size });
  return {
    mesh: new Mesh(geometry, material), loose: new Points(alone, dots), near, far,
    paint(values) {
      colour.array.set(values);
      colour.needsUpdate = true;
    },
    dispose: () => [geometry, alone, material, dots].forEach((thing) => thing.dispose()),
  };
}

/** Linear RGB of every point. Heat lies over RGB, or over grey depth, as in das3d's overlays. */
function colours({ depth, rgb, heat, high }, { near, far }, name) {
  const out = new Float32Array(3 * depth.length), range = Math.max(far - near, 1e-12);
  const turbo = ramp(TURBO), viridis = ramp(VIRIDIS), pixel = new Color();
  for (let i = 0; i < depth.length; i++) {
    const height = Math.min(Math.max((far - depth[i]) / range, 0), 1) || 0;
    if (name === "depth") pixel.copy(viridis(height));
    else if (rgb) pixel.setRGB(rgb[3 * i] / 255, rgb[3 * i + 1] / 255, rgb[3 * i + 2] / 255, SRGBColorSpace);
    else pixel.setScalar(0.15 + 0.5 * height);
    if (name === "heat") {
      const share = Math.min(Math.max(heat[i] / high, 0), 1);
      pixel.lerp(turbo(share), 0.85 * Math.min(Math.max((share - 0.2) * 2, 0), 1));
    }
    pixel.toArray(out, 3 * i);
  }
  return out;
}

function ramp(stops) {
  const fixed = stops.map((hex) => new Color(`#${hex}`)), mixed = new Color();
  return (share) => {
    const at = share * (fixed.length - 1), low = Math.min(Math.floor(at), fixed.length - 2);
    return mixed.lerpColors(fixed[low], fixed[low + 1], at - low);
  };
}

function buttons(group, label, choices, chosen) {
  const box = document.createElement("div");
  box.className = "group";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  for (const [value, text] of choices) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.dataset[group] = value;
    button.addEventListener("click", () => chosen(value));
    box.append(button);
  }
  return box;
}

function press(bar, group, value) {
  for (const button of bar.querySelectorAll(`[data-${group}]`)) {
    button.setAttribute("aria-pressed", String(button.dataset[group] === value));
  }
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function pixels(source, width, height) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: 3 * width * height }, (_, i) => rgba[4 * Math.floor(i / 3) + (i % 3)]);
}
