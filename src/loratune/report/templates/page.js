(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const cards = [...document.querySelectorAll("article")].map(card => ({ card, text: card.textContent.toLowerCase() }));
  const groups = [...document.querySelectorAll(".group")];
  const show = () => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/);
    const chosen = name => form.elements[name] ? form.elements[name].value : "";
    let shown = 0;
    for (const { card, text } of cards) {
      const fits = words.every(word => text.includes(word))
        && (!chosen("state") || card.dataset.state === chosen("state"))
        && (!chosen("source") || card.dataset.source === chosen("source"));
      card.hidden = !fits;
      shown += fits;
    }
    for (const group of groups) group.hidden = !group.querySelector("article:not([hidden])");
    document.body.classList.toggle("plain", !form.elements.marks.checked);
    document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
  };
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  addEventListener("beforeprint", () => document.querySelectorAll("main > details").forEach(part => part.open = true));
  show();
})();
