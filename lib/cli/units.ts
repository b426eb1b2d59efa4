// Numbers for people.

const prefixes = ['', 'k', 'M', 'G', 'T', 'P']

/** With a decimal prefix: `scaled(118.64e9, 'MAC')` is '119 GMAC', with 4 digits '118.6 GMAC'. */
export function scaled(value: number, unit: string, digits = 3): string {
  let scale = 0
  let rest = value
  while (rest >= 999.5 && scale < prefixes.length - 1) {
    rest /= 1000
    scale++
  }
  const isWhole = scale === 0 && Number.isInteger(value)
  const text = isWhole ? String(value) : rest.toPrecision(digits)
  return `${text} ${prefixes[scale]}${unit}`.trim()
}

/** '420 ms', '12.3 s', '2 min 05 s', '1 h 02 min'. */
export function duration(seconds: number): string {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`
  if (seconds < 59.95) return `${seconds.toPrecision(3)} s`
  const pad = (n: number) => String(n).padStart(2, '0')
  const whole = Math.round(seconds)
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`
  const minutes = Math.round(whole / 60)
  return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`
}

/** Lines of two columns, the first as wide as its widest entry. */
export function columns(rows: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => `${name.padEnd(width)}  ${value}`.trimEnd()).join('\n')
}
