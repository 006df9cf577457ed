// A map of probabilities in colours: dark 0, bright 1.

const RAMP = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

// Draws a byte a pixel, 255 being 1; the greatest of them.
export function draw(canvas, { values, width, height }) {
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  let most = 0;
  values.forEach((value, place) => {
    most = Math.max(most, value);
    const at = (value / 255) * (RAMP.length - 1);
    const below = Math.min(RAMP.length - 2, Math.floor(at));
    for (let part = 0; part < 3; part++) {
      image.data[4 * place + part] = RAMP[below][part] + (at - below) * (RAMP[below + 1][part] - RAMP[below][part]);
    }
    image.data[4 * place + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return most;
}
