// Tooltips for everything with data-tip, by pointer or by tap. Without it the page lacks nothing but these.
(() => {
  const tip = document.getElementById("tip");
  const show = (event) => {
    const of = event.target.closest("[data-tip]");
    tip.hidden = !of;
    if (!of) return;
    tip.textContent = of.dataset.tip;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - box.width - 8)) + "px";
    tip.style.top = (event.clientY > box.height + 20 ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
  };
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, show);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
