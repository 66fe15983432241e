// Rows of the table that a person has selected, and what is done to all of them. A row may be replaced at any time, so
// what is selected is kept by names.

export class Selection {
  // `send` gets an address, the names, and what a person is to be asked before.
  constructor(rows, send) {
    this.rows = rows;
    this.names = new Set();
    document.addEventListener("change", ({ target }) => {
      if (target.matches("input.pick")) this.set(target.closest("tr"), target.checked);
      else if (target.id === "select-all") for (const row of rows.values()) if (!row.hidden) this.set(row, target.checked);
      else return;
      this.show();
    });
    document.addEventListener("click", ({ target }) => {
      if (target.id === "select-none") {
        for (const name of [...this.names]) this.set(rows.get(name), false);
        this.show();
      }
      const { selected, question } = target.closest("button[data-selected]")?.dataset ?? {};
      if (selected) send(selected, [...this.names], question?.replace("{}", this.names.size));
    });
  }

  set(row, selected) {
    const box = row.querySelector("input.pick");
    if (!box) return;
    box.checked = selected;
    if (selected) this.names.add(row.dataset.name);
    else this.names.delete(row.dataset.name);
  }

  restore(row) {
    if (this.names.has(row.dataset.name)) this.set(row, true);
  }

  forget(name) {
    this.names.delete(name);
  }

  show() {
    const bar = document.getElementById("selected");
    if (!bar) return;
    bar.hidden = !this.names.size;
    const hidden = [...this.names].filter((name) => this.rows.get(name)?.hidden).length;
    document.getElementById("selected-count").textContent =
      `${this.names.size} selected${hidden ? `, ${hidden} of them not shown` : ""}`;
    const all = [...this.rows.values()].filter((row) => !row.hidden && row.querySelector("input.pick"));
    const box = document.getElementById("select-all");
    const some = all.filter((row) => this.names.has(row.dataset.name)).length;
    box.checked = some > 0 && some === all.length;
    box.indeterminate = some > 0 && some < all.length;
  }
}
