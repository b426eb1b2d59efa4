/**
 * Which of several media types an Accept header prefers (RFC 9110, 12.5.1): the highest quality by the most
 * specific range that fits; among equals the first.
 *
 * @internal
 */
export function prefers<T extends string>(
  accept: string | undefined,
  types: readonly [T, ...T[]],
): T {
  if (accept === undefined) return types[0]
  const ranges = accept.split(',').map((range) => {
    const [type = '', ...parameters] = range.split(';').map((part) => part.trim().toLowerCase())
    const q = parameters.find((parameter) => parameter.startsWith('q='))
    const quality = q === undefined ? 1 : Number(q.slice(2))
    return { type, quality: Number.isFinite(quality) ? quality : 0 }
  })
  const qualityOf = (type: string) => {
    const group = `${type.split('/')[0]}/*`
    for (const wanted of [type, group, '*/*']) {
      const range = ranges.find((one) => one.type === wanted)
      if (range) return range.quality
    }
    return 0
  }
  const [first] = types
  return types.reduce((best, type) => (qualityOf(type) > qualityOf(best) ? type : best), first)
}
