// Markdown files: their fenced snippets, and the anchors of their headings.

import { readFileSync } from 'node:fs'
import path from 'node:path'

/** `text` is what is not to be run: a diagram, what a program prints. */
export type SnippetKind = 'ts' | 'js' | 'sh' | 'json' | 'text'

export interface Snippet {
  /** `README.md:12`. */
  readonly place: string
  readonly kind: SnippetKind
  readonly text: string
}

const kinds: readonly string[] = ['ts', 'js', 'sh', 'json', 'text'] satisfies SnippetKind[]
const looksRunnable =
  /^\s*(\$ |(npx?|node|dit|curl|cmake|git|sudo|apt-get|docker)\s|(import|export|const|let|await|for|if)\b|[{}\])]+$)/m

/**
 * All snippets of a file. Throws for code in any form that would escape: a fence of another kind, an
 * indented block, a `text` that looks like code.
 */
export function snippetsIn(file: string, name = path.basename(file)): Snippet[] {
  return parseSnippets(readFileSync(file, 'utf8'), name)
}

/** The same of a text. */
export function parseSnippets(markdown: string, name: string): Snippet[] {
  const found: Snippet[] = []
  let open: { place: string; kind: string; lines: string[] } | undefined
  for (const [i, line] of markdown.split('\n').entries()) {
    const place = `${name}:${i + 1}`
    if (open !== undefined) {
      if (line !== '```') {
        open.lines.push(line)
        continue
      }
      found.push(checked(open.place, open.kind, `${open.lines.join('\n')}\n`))
      open = undefined
    } else if (/^\s*(```|~~~)/.test(line)) {
      const [, kind] = /^```(\w*)$/.exec(line) ?? []
      if (kind === undefined) throw new Error(`${place}: expected \`\`\`kind alone, got ${line}`)
      open = { place, kind, lines: [] }
    } else if (/^( {4}|\t)/.test(line)) {
      throw new Error(`${place}: an indented block; write it with \`\`\``)
    } else if (/<(pre|code)\b/i.test(line)) {
      throw new Error(`${place}: code as HTML; write it with \`\`\``)
    }
  }
  if (open !== undefined) throw new Error(`${open.place}: it has no end`)
  return found
}

function checked(place: string, kind: string, text: string): Snippet {
  if (!kinds.includes(kind)) {
    throw new Error(`${place}: a snippet of the kind '${kind}'; nothing runs it (${kinds.join()})`)
  }
  if (kind === 'text' && looksRunnable.test(text)) {
    throw new Error(`${place}: what looks like code must be run: give its kind`)
  }
  return { place, kind: kind as SnippetKind, text }
}

/** The commands of a shell snippet: lines, continued ones joined, without their comments. */
export function commandsOf(script: string): string[] {
  return script
    .replaceAll('\\\n', ' ')
    .split('\n')
    .map((line) => line.replace(/(^|\s)#.*$/, '').trim())
    .filter((line) => line !== '')
}

/** What links lead to within a page: `#how-fast`. */
export function anchorsOf(markdown: string): Set<string> {
  const headings = [...markdown.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => heading)
  const anchor = (heading: string) => heading.toLowerCase().replace(/[^\w -]/g, '')
  return new Set(headings.map((heading) => anchor(heading).replaceAll(' ', '-')))
}
