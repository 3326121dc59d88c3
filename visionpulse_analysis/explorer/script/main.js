// The two ways in: the offline page (mountPage) and the notebook widget (render, as anywidget asks for it).

import { Explorer } from "./explorer.js";

function mount(root, payload, options) {
  root.explorer = new Explorer(root, payload, options); // within reach of the console, and of the tests
  return root.explorer;
}

/** The offline page: the view lives in the address. */
export function mountPage(root, payload, link) {
  return mount(root, payload, {
    link: location.hash || link,
    page: true,
    onLink: (text) => {
      if (location.protocol !== "about:") history.replaceState(null, "", `#${text}`); // inside a notebook there is no address
    },
  });
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
