/** Which files belong together: a part is an RGB file, a depth file, or both, paired strictly by name. */

/** Word in a name -> member, as training reads it (das3d/layouts.py). */
const ROLES = new Map(Object.entries(JSON.parse(document.getElementById("roles").textContent)));
const DEPTH_ONLY = /\.(npy|npz|ply|pcd)$/i, RGB_ONLY = /\.(jpe?g|bmp)$/i, EITHER = /\.(png|tiff?)$/i;

/**
 * Parts in a list of { path, file }, in the order of their names.
 *
 * As in a data set of das3d, the folder is the member's (rgb/a.png, depth/a.tiff), or it stands in the name (a_rgb.png,
 * a_depth.png). Two files alone are a pair whatever they are called. A part with two files for one member is a problem and
 * no part. Returns { parts: [{ part, rgb, depth }], problems: [text] }.
 */
export async function pairs(entries) {
  const parts = new Map(), doubled = new Set(), problems = [];
  const known = [];
  for (const { path, file } of entries) {
    if (!DEPTH_ONLY.test(path) && !RGB_ONLY.test(path) && !EITHER.test(path)) continue;
    const { part, role } = nameOf(path);
    if (role !== "mask") known.push({ part, file, member: role || (await memberOf(file)) });
  }
  const alone = known.length === 2 && known[0].member !== known[1].member;
  for (const { part, member, file } of known) {
    const key = alone ? known.find((one) => one.member === "rgb").part : part;
    const found = parts.get(key) || { part: key };
    if (found[member]) {
      problems.push(`${key}: two files for ${member}, ${found[member].name} and ${file.name}; not inspected`);
      doubled.add(key);
    }
    parts.set(key, { ...found, [member]: file });
  }
  for (const key of doubled) parts.delete(key); // whichever was meant
  if (!known.length) problems.push("no RGB or depth files in what was dropped");
  const sorted = [...parts.values()].sort((a, b) => a.part.localeCompare(b.part, undefined, { numeric: true }));
  return { parts: sorted, problems };
}

/** Part and role by folder, else by the last word of the name; no role where neither tells. */
function nameOf(path) {
  const steps = path.normalize().split("/").filter(Boolean); // systems write letters with accents either way
  const stem = steps.pop().replace(/\.[^.]+$/, "");
  const byFolder = ROLES.get(steps.at(-1)?.toLowerCase());
  if (byFolder) return { part: [...steps.slice(0, -1), stem].join("/"), role: byFolder };
  const [, name, word] = /^(.+)_([^_]*)$/.exec(stem) || [];
  const role = ROLES.get(word?.toLowerCase());
  return { part: [...steps, role ? name : stem].join("/"), role };
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
