// What an image begins with, drawn: Gaussian noise that a seed determines. It stands for the model's own
// noise, which is not the same numbers and, with a VAE, is not pixels at all.

const mean = 128
const deviation = 52

/** mulberry32: a small generator, uniform in [0, 1). @param {number} seed */
function uniform(seed) {
  let state = (seed ^ Math.floor(seed / 2 ** 32)) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let bits = Math.imul(state ^ (state >>> 15), 1 | state)
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32
  }
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number} seed
 * @param {{ width: number, height: number, channels: number }} size In pixels; channels 1: grey.
 */
export function drawNoise(canvas, seed, { width, height, channels }) {
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d')
  if (context === null) return
  const image = context.createImageData(width, height)
  const next = uniform(seed)
  // Box and Muller's transform, of which one of the two numbers is used.
  const value = () =>
    mean + deviation * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
  for (let i = 0; i < image.data.length; i += 4) {
    const red = value()
    image.data[i] = red
    image.data[i + 1] = channels === 1 ? red : value()
    image.data[i + 2] = channels === 1 ? red : value()
    image.data[i + 3] = 255
  }
  context.putImageData(image, 0, 0)
}
