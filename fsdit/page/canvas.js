// Draws with mouse, pen or finger. `element` is the component that holds the canvas.
const canvas = element.querySelector("canvas");
const colour = element.querySelector("input");
const context = canvas.getContext("2d");

canvas.wipe = () => {
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
};

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

let last = null;

function draw(event) {
  if (last === null) return;
  const next = place(event);
  context.strokeStyle = colour ? colour.value : "black";
  context.lineWidth = canvas.width / 13;
  context.lineCap = "round";
  context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(...next);
  context.stroke();
  last = next;
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  draw(event);
});
canvas.addEventListener("pointermove", draw);
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => (last = null));
}
canvas.wipe();
