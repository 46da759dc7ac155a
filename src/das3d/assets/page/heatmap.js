/** A picture with heat over it, as das3d's overlays: the picture shows through unchanged up to a fifth of `high`. */
import { TURBO } from "das3d/viewer";

const COLOURS = table();

export class HeatMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
  }

  /** The images of `decodedOf`, of which the heat holds square roots of the map. */
  load([under, over], regions, window) {
    const { width, height } = under;
    Object.assign(this.canvas, { width, height });
    this.context.drawImage(over, 0, 0);
    const grey = this.context.getImageData(0, 0, width, height).data;
    this.values = Float32Array.from({ length: width * height }, (_, i) => (grey[4 * i] / 255) ** 2);
    this.context.drawImage(under, 0, 0);
    this.picture = this.context.getImageData(0, 0, width, height);
    this.regions = regions;
    this.window = window;
  }

  /** Show nothing until the next `load`. */
  clear() {
    this.picture = null;
    this.canvas.width = this.canvas.height = 1;
  }

  draw(high, opacity) {
    if (!this.picture) return;
    const out = new ImageData(new Uint8ClampedArray(this.picture.data), this.picture.width);
    for (let i = 0; i < this.values.length; i++) {
      const share = Math.min(this.values[i] / high, 1);
      const weight = 0.75 * opacity * Math.min(Math.max((share - 0.2) * 2, 0), 1);
      if (!weight) continue;
      const colour = 3 * Math.round(255 * share);
      for (let c = 0; c < 3; c++) out.data[4 * i + c] += weight * (COLOURS[colour + c] - out.data[4 * i + c]);
    }
    this.context.putImageData(out, 0, 0);
    if (opacity > 0) this.drawRegions();
  }

  drawRegions() {
    const { context } = this, scale = Math.max(1, this.canvas.width / 400);
    context.font = `600 ${12 * scale}px system-ui, sans-serif`;
    context.lineJoin = "round";
    for (const [index, region] of this.regions.entries()) {
      const corners = region.outline.map(([x, y]) => [x + 0.5 - this.window.left, y + 0.5 - this.window.top]);
      const right = Math.max(...corners.map(([x]) => x)), top = Math.min(...corners.map(([, y]) => y));
      for (const [colour, width] of [["#000a", 4], ["#fff", 1.5]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: width * scale, fillStyle: colour });
        context.beginPath();
        for (const [x, y] of corners) context.lineTo(x, y);
        context.closePath();
        context.stroke();
        const at = [right + 4 * scale, top + 8 * scale];
        if (width > 2) context.strokeText(index + 1, ...at);
        else context.fillText(index + 1, ...at);
      }
    }
  }
}

/** A CSS gradient of the colours. */
export const gradient = () => `linear-gradient(90deg, ${TURBO.map((hex) => `#${hex}`).join(", ")})`;

/** 256 colours, three numbers each. */
function table() {
  const stops = TURBO.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Float32Array.from({ length: 768 }, (_, i) => {
    const at = (Math.floor(i / 3) / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low][i % 3] + (at - low) * (stops[low + 1][i % 3] - stops[low][i % 3]);
  });
}

/** Picture and heat of a view, whose addresses it holds, ready to be painted at once. */
export const decodedOf = ({ picture, heat }) => Promise.all([decoded(picture), decoded(heat)]);

async function decoded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}
