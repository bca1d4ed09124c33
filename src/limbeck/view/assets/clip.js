// Text that leaves the page: to the clipboard, or as a file.
import { announce, el } from "./dom.js";

// A page from another machine, without TLS, has no clipboard of its own: there a selection is copied.
async function copyText(text) {
  if (navigator.clipboard && isSecureContext) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not let this page copy");
}

// A button that copies `text()` and says so.
export function copyButton(label, text, { title = "", name = "quiet" } = {}) {
  const button = el("button", { type: "button", class: name, title, "aria-label": title || label }, label);
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const said = await copyText(text()).then(() => "Copied", (error) => `Not copied: ${error.message}`);
    announce(said);
    button.replaceChildren(said);
    setTimeout(() => button.replaceChildren(label), 1500);
  });
  return button;
}

export function saveText(name, type, text) {
  const link = el("a", { download: name });
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Rows of texts and numbers as CSV. A spreadsheet would run a text that begins as a formula does: it gets an apostrophe.
export function csvText(rows) {
  const cell = (value) => {
    const text = value === undefined || value === null ? "" : typeof value === "number" ? String(value) : String(value).replace(/^[=+\-@\t\r]/, "'$&");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}
