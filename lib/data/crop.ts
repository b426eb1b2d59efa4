// Images to the model's size, as ADM prepares ImageNet (Dhariwal & Nichol 2021): halved by a box filter
// while both sides are at least twice as long as wanted, then resized by a bicubic filter until the
// shorter side fits, then the centre is cut out.

/** Rows from the top, channels innermost, 8 bits each. */
export interface Bitmap {
  readonly data: Uint8Array | Uint8ClampedArray
  readonly width: number
  readonly height: number
  readonly channels: number
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
 * const square = centreCrop({ data, width: 640, height: 480, channels: 3 }, 256, 256)
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

/** A window of the image resized to `size`: first the columns, then the rows, rounded after each. */
function resample(
  { data, width, height, channels }: Bitmap,
  size: readonly [height: number, width: number],
  filter: Filter,
  window: Window,
): Bitmap {
  const rows = taps(height, size[0], filter, window.top, window.height)
  const columns = taps(width, size[1], filter, window.left, window.width)
  const line = width * channels
  const sums = new Float32Array(line)
  const shorter = new Uint8ClampedArray(window.height * line) // rounds, and clamps overshoots
  for (const [y, { first, weights }] of rows.entries()) {
    sums.fill(0)
    for (const [k, weight] of weights.entries()) {
      const begin = (first + k) * line
      for (let j = 0; j < line; j++)
        sums[j] = (sums[j] as number) + weight * (data[begin + j] as number)
    }
    shorter.set(sums, y * line)
  }
  const out = new Uint8ClampedArray(window.height * window.width * channels)
  for (const [x, { first, weights }] of columns.entries()) {
    for (let y = 0; y < window.height; y++) {
      for (let c = 0; c < channels; c++) {
        const begin = y * line + first * channels + c
        let sum = 0
        for (let k = 0; k < weights.length; k++) {
          sum += (weights[k] as number) * (shorter[begin + k * channels] as number)
        }
        out[(y * window.width + x) * channels + c] = sum
      }
    }
  }
  return { data: out, width: window.width, height: window.height, channels }
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
 * Pixels as a model takes them: numbers [channels, height, width], value / 127.5 - 1. One channel of a
 * colour image is its luminance (ITU-R BT.601); a grey image is the same in all channels.
 */
export function toModel(image: Bitmap, channels: number): Float32Array {
  const { data, width, height } = image
  const plane = width * height
  const out = new Float32Array(channels * plane)
  for (let i = 0; i < plane; i++) {
    const pixel = i * image.channels
    if (channels === 1 && image.channels === 3) {
      const [red, green, blue] = [data[pixel], data[pixel + 1], data[pixel + 2]] as [
        number,
        number,
        number,
      ]
      out[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 127.5 - 1
      continue
    }
    for (let c = 0; c < channels; c++) {
      out[c * plane + i] = (data[pixel + (image.channels === 1 ? 0 : c)] as number) / 127.5 - 1
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
