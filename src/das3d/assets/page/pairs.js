/** Which files belong together: a part is an RGB file, a depth file, or both, paired strictly by name. */

const MEMBERS = { rgb: "rgb", color: "rgb", image: "rgb", xyz: "depth", depth: "depth", z: "depth" };
const LEFT_OUT = /^(gt|mask|masks|ground_truth)$/i;
const DEPTH_ONLY = /\.(npy|npz|ply|pcd)$/i, RGB_ONLY = /\.(jpe?g|bmp)$/i, EITHER = /\.(png|tiff?)$/i;

/**
 * Parts in a list of { path, file }, in the order of their names.
 *
 * As in a data set of das3d, the member stands in the name (a_rgb.png, a_depth.png) or is a folder (rgb/a.png, depth/a.tiff).
 * Two files alone are a pair whatever they are called. Returns { parts: [{ part, rgb, depth }], problems: [text] }.
 */
export async function pairs(entries) {
  const parts = new Map(), problems = [];
  const known = [];
  for (const { path, file } of entries) {
    if (!DEPTH_ONLY.test(path) && !RGB_ONLY.test(path) && !EITHER.test(path)) continue;
    const named = nameOf(path);
    if (named) known.push({ ...named, file, member: named.member || (await memberOf(file)) });
  }
  const alone = known.length === 2 && known[0].member !== known[1].member;
  for (const { part, member, file } of known) {
    const key = alone ? known.find((one) => one.member === "rgb").part : part;
    const found = parts.get(key) || { part: key };
    if (found[member]) problems.push(`${key}: two files for ${member}, ${found[member].name} and ${file.name}`);
    parts.set(key, { ...found, [member]: file });
  }
  if (!known.length) problems.push("no RGB or depth files in what was dropped");
  const sorted = [...parts.values()].sort((a, b) => a.part.localeCompare(b.part, undefined, { numeric: true }));
  return { parts: sorted, problems };
}

/** Part and member by name; null for masks. */
function nameOf(path) {
  const steps = path.split("/").filter(Boolean);
  const stem = steps.pop().replace(/\.[^.]+$/, "");
  if (steps.some((step) => LEFT_OUT.test(step)) || /[_-]mask$/i.test(stem)) return null;
  const folder = steps.findLastIndex((step) => step.toLowerCase() in MEMBERS);
  const ending = /^(.*)[_-]([a-z]+)$/i.exec(stem);
  if (ending && ending[2].toLowerCase() in MEMBERS) {
    return { part: [...steps, ending[1]].join("/"), member: MEMBERS[ending[2].toLowerCase()] };
  }
  const member = folder < 0 ? null : MEMBERS[steps[folder].toLowerCase()];
  return { part: [...steps.filter((_, index) => index !== folder), stem].join("/"), member };
}

/** What a file holds where its name does not say. */
async function memberOf(file) {
  if (DEPTH_ONLY.test(file.name)) return "depth";
  if (RGB_ONLY.test(file.name)) return "rgb";
  if (/\.png$/i.test(file.name)) {
    const head = new Uint8Array(await file.slice(0, 26).arrayBuffer());
    return head[24] === 16 && head[25] === 0 ? "depth" : "rgb"; // 16 bits of grey
  }
  return "depth"; // TIFF
}

/** { path, file } of all that was dropped, folders included. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return chosen(transfer.files);
  const found = [];
  const walk = async (entry, path) => {
    if (entry.isFile) {
      found.push({ path: path + entry.name, file: await new Promise((done, fail) => entry.file(done, fail)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // a hundred at a time
      if (!some.length) return;
      for (const inner of some) await walk(inner, `${path}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, "");
  return found;
}

/** { path, file } of what a file input holds. */
export const chosen = (files) => [...files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
