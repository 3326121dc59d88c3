// The two ways in: the offline page (mountPage) and the notebook widget (render, as anywidget asks for it).

import { Explorer } from "./explorer.js";

function mount(root, payload, options) {
  root.explorer = new Explorer(root, payload, options); // within reach of the console, and of the tests
  return root.explorer;
}

/** The offline page: the view lives in the address. */
export function mountPage(root, payload, link) {
  let address = location.hash; // the last one that we wrote or followed
  const explorer = mount(root, payload, {
    link: address || link,
    page: true,
    onLink: (text) => {
      // Inside a notebook there is no address. Another one than ours is the reader's, about to be followed: it stays.
      if (location.protocol === "about:" || location.hash !== address) return;
      history.replaceState(null, "", `#${text}`);
      address = location.hash;
    },
  });
  explorer.on(window, "hashchange", () => {
    const asked = (address = location.hash);
    explorer.ready.then(() => explorer.follow(asked));
  });
  return explorer;
}

/** The notebook: the view is a trait, so that Python can read and set it. */
function render({ model, el }) {
  const root = document.createElement("div");
  el.append(root);
  const explorer = mount(root, JSON.parse(model.get("payload")), {
    link: model.get("view"),
    onLink: (text) => { model.set("view", text); model.save_changes(); },
  });
  const follow = () => explorer.ready.then(() => explorer.follow(model.get("view")));
  model.on("change:view", follow);
  return () => { model.off("change:view", follow); explorer.close(); };
}

export default { render };
