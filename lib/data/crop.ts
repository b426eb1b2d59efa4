// Images to the model's size, as ADM prepares ImageNet (Dhariwal & Nichol 2021): halved by a box filter
// while both sides are at least twice as long as wanted, then resized by a bicubic filter until the
// shorter side fits, then the centre is cut out.

/** Red, green and blue of each pixel, rows from the top, 8 bits each. */
export interface Bitmap {
  /** All of one type, or the loops over them are slow. */
  readonly data: Uint8ClampedArray
  readonly width: number
  readonly height: number
}

/** A filter: its weight at a distance, and the distance from which on it is zero. */
interface Filter {
  readonly reach: number
  weight(distance: number): number
}

const box: Filter = { reach: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) }

/** Keys 1981, with a = -1/2. */
const bicubic: Filter = {
  reach: 2,
  weight(distance) {
    const x = Math.abs(distance)
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0
  },
}

/**
 * The centre of an image, `height` × `width` pixels, as large a part of it as fits.
 *
 * @example
 * const square = centreCrop({ data, width: 640, height: 480 }, 256, 256)
 */
export function centreCrop(image: Bitmap, height: number, width: number): Bitmap {
  let rest = image
  while (rest.height >= 2 * height && rest.width >= 2 * width) {
    const half = [Math.floor(rest.height / 2), Math.floor(rest.width / 2)] as const
    rest = resample(rest, half, box, { top: 0, left: 0, height: half[0], width: half[1] })
  }
  const scale = Math.max(height / rest.height, width / rest.width)
  const size = [Math.round(rest.height * scale), Math.round(rest.width * scale)] as const
  const top = Math.floor((size[0] - height) / 2)
  const left = Math.floor((size[1] - width) / 2)
  return resample(rest, size, bicubic, { top, left, height, width })
}

interface Window {
  top: number
  left: number
  height: number
  width: number
}

/**
 * A window of the image resized to `size`: along its rows, then along its columns. After each
 * the numbers are rounded, halves up: halving, half of all are.
 */
function resample(
  { data, width, height }: Bitmap,
  size: readonly [height: number, width: number],
  filter: Filter,
  window: Window,
): Bitmap {
  const columns = taps(width, size[1], filter, window.left, window.width)
  const rows = taps(height, size[0], filter, window.top, window.height)
  const top = Math.min(...rows.map(({ first }) => first))
  const bottom = Math.max(...rows.map(({ first, weights }) => first + weights.length))
  const line = 3 * window.width
  const narrow = new Uint8ClampedArray((bottom - top) * line) // cuts off what overshoots
  for (let y = top, to = 0; y < bottom; y++) {
    for (const { first, weights } of columns) {
      let from = 3 * (y * width + first)
      let red = 0.5
      let green = 0.5
      let blue = 0.5
      for (let k = 0; k < weights.length; k++) {
        const weight = weights[k] as number
        red += weight * (data[from++] as number)
        green += weight * (data[from++] as number)
        blue += weight * (data[from++] as number)
      }
      narrow[to++] = Math.floor(red)
      narrow[to++] = Math.floor(green)
      narrow[to++] = Math.floor(blue)
    }
  }
  const out = new Uint8ClampedArray(window.height * line)
  let to = 0
  for (const { first, weights } of rows) {
    const begin = (first - top) * line
    for (let j = 0; j < line; j++) {
      let sum = 0.5
      for (let k = 0; k < weights.length; k++) {
        sum += (weights[k] as number) * (narrow[begin + k * line + j] as number)
      }
      out[to++] = Math.floor(sum)
    }
  }
  return { data: out, width: window.width, height: window.height }
}

/** The inputs that an output is made of: from `first` on, with weights of sum 1. */
interface Taps {
  first: number
  weights: Float64Array
}

/**
 * Taps of outputs `begin` to `begin + count` of `to`, from `from` inputs. Shrinking, the filter is
 * widened by the factor, so that every input counts; beyond the border there is nothing.
 */
function taps(from: number, to: number, filter: Filter, begin: number, count: number): Taps[] {
  const factor = from / to
  const widening = Math.max(1, factor)
  return Array.from({ length: count }, (_, i) => {
    const centre = (begin + i + 0.5) * factor
    const reach = filter.reach * widening
    const weight = (input: number) => filter.weight((input + 0.5 - centre) / widening)
    let first = Math.max(0, Math.ceil(centre - reach - 0.5))
    let last = Math.min(from - 1, Math.floor(centre + reach - 0.5))
    while (weight(first) === 0) first++ // where the size stays the same, one tap is left
    while (weight(last) === 0) last--
    const weights = Float64Array.from({ length: last - first + 1 }, (_, k) => weight(first + k))
    const sum = weights.reduce((total, weight) => total + weight, 0)
    return { first, weights: weights.map((weight) => weight / sum) }
  })
}

/**
 * Pixels as a model takes them: numbers [channels, height, width], value / 127.5 - 1. Of one channel, the
 * luminance (ITU-R BT.601).
 */
export function toModel({ data, width, height }: Bitmap, channels: 1 | 3): Float32Array {
  const plane = width * height
  const out = new Float32Array(channels * plane)
  for (let i = 0, from = 0; i < plane; i++) {
    const red = data[from++] as number
    const green = data[from++] as number
    const blue = data[from++] as number
    if (channels === 1) {
      out[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 127.5 - 1
    } else {
      out[i] = red / 127.5 - 1
      out[plane + i] = green / 127.5 - 1
      out[2 * plane + i] = blue / 127.5 - 1
    }
  }
  return out
}

/** Mirrors numbers [planes, rows, width] from left to right, in place. */
export function mirror(numbers: Float32Array, width: number): void {
  for (let begin = 0; begin < numbers.length; begin += width) {
    numbers.subarray(begin, begin + width).reverse()
  }
}
