// Doc comments, taken apart.

/** What a doc comment says. */
export interface Doc {
  /** Markdown. */
  text: string
  params: { name: string; text: string }[]
  /** TypeScript. */
  examples: string[]
  internal: boolean
}

/** @param comment With its slashes and stars; '' for none. */
export function parseDoc(comment: string): Doc {
  const lines = comment
    .replace(/^\/\*\*[ \t]?/, '')
    .replace(/\s*\*\/$/, '')
    .split('\n')
    .map((line) => line.replace(/^\s*\* ?/, ''))
  const text: string[] = []
  const doc: Doc = { text: '', params: [], examples: [], internal: false }
  let into = text
  const blocks: { tag: string; lines: string[] }[] = []
  for (const line of lines) {
    const [, tag, rest = ''] = /^@(\w+)\s*(.*)$/.exec(line) ?? []
    if (tag !== undefined) {
      const block = { tag, lines: [rest] }
      blocks.push(block)
      into = block.lines
      continue
    }
    // A blank line ends a parameter; an example has blank lines of its own.
    if (line === '' && blocks.at(-1)?.tag === 'param') into = text
    into.push(line)
  }
  for (const block of blocks) {
    const content = block.lines.join('\n').trim()
    if (block.tag === 'example') doc.examples.push(content)
    else if (block.tag === 'internal') doc.internal = true
    else if (block.tag === 'param') {
      const [, name = '', about = ''] = /^(\S+)\s*([\s\S]*)$/.exec(content) ?? []
      doc.params.push({ name, text: oneLine(about) })
    } else throw new Error(`There is no rule for @${block.tag} in:\n${comment}`)
  }
  // `/** What it is. @internal */`, in one line.
  if (/@internal\b/.test(text.join('\n'))) doc.internal = true
  doc.text = text
    .join('\n')
    .replace(/\n{3,}/g, '\n\n')
    .trim()
  return doc
}

export function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim()
}

/** Up to its first full stop that ends a sentence. */
export function firstSentence(text: string): string {
  const paragraph = oneLine(text.split('\n\n', 1)[0] as string)
  return /^.*?[.!](?=\s+[A-Z`'(]|$)/.exec(paragraph)?.[0] ?? paragraph.replace(/:$/, '.')
}
