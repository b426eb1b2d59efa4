// The reference's pages.

import { type Doc, firstSentence, oneLine } from './comments.js'
import type { EntryPoint, Export, Member } from './declarations.js'
import { instances, outline, type Page } from './outline.js'

/** What is made by this program, and not by hand, says so. */
const notice =
  '<!-- Made from the doc comments by `npm run docs`: change those, not this page. -->\n\n'

/** Where a name is explained, and its first sentence. */
interface Place {
  page: Page
  specifier: string
  item: Export
}

/** The text of each file of docs/api. */
export function renderPages(entries: readonly EntryPoint[]): Map<string, string> {
  const places = placesOf(entries)
  const pages = [...new Set([...places.values()].map(({ page }) => page))]
  const files = new Map<string, string>()
  files.set('README.md', renderIndex(entries, places, pages))
  for (const page of pages) {
    const here = [...places.values()].filter((place) => place.page === page)
    const { specifier } = here[0] as Place
    const contents = here.map(({ item }) => `[${item.name}](#${anchor(item.name)})`).join(' · ')
    const sections = here.map(({ item }) => renderExport(item, page, places))
    const start = `# ${page.title}\n\n${page.intro} Everything here comes from \`${specifier}\`.\n\n`
    files.set(
      page.file,
      `${notice}${start}[All pages](README.md): ${contents}\n\n${sections.join('\n\n')}\n`,
    )
  }
  return files
}

function placesOf(entries: readonly EntryPoint[]): Map<string, Place> {
  const places = new Map<string, Place>()
  for (const { specifier, exports } of entries) {
    const short = specifier.split('/').at(-1) as string
    const whole: Page = {
      file: `${short}.md`,
      title: specifier,
      intro: `The import path \`${specifier}\`.`,
      names: exports.map(({ name }) => name),
    }
    const pages = outline[specifier] ?? [whole]
    for (const page of pages) {
      for (const name of page.names) {
        const item = exports.find((one) => one.name === name)
        if (item === undefined) throw new Error(`${specifier} exports no ${name}: see outline.ts`)
        // What several paths export is explained with the first.
        if (!places.has(name)) places.set(name, { page, specifier, item })
      }
    }
    const homeless = exports.filter(({ name }) => !places.has(name)).map(({ name }) => name)
    if (homeless.length > 0) {
      throw new Error(`On no page: ${homeless.join(', ')}. Add them to scripts/docs/outline.ts`)
    }
  }
  return places
}

function renderIndex(
  entries: readonly EntryPoint[],
  places: ReadonlyMap<string, Place>,
  pages: readonly Page[],
): string {
  const names = entries.map(({ specifier }) => `\`${specifier}\``).join(' and ')
  const sections = pages.map((page) => {
    const rows = [...places.values()]
      .filter((place) => place.page === page)
      .map(({ item }) => {
        const link = `[\`${item.name}\`](${page.file}#${anchor(item.name)})`
        return `| ${link} | ${cell(firstSentence(item.doc.text))} |`
      })
    return `## [${page.title}](${page.file})\n\n${page.intro}\n\n| | |\n|---|---|\n${rows.join('\n')}`
  })
  return `${notice}# API reference\n\nAll that ${names} export${entries.length === 1 ? 's' : ''}.\n\n${sections.join('\n\n')}\n`
}

function renderExport(item: Export, page: Page, places: ReadonlyMap<string, Place>): string {
  const links = (text: string) => mentions(text, item.name, page, places)
  const parts = [`## ${item.name}`, ...prose(item.doc)]
  if (item.kind === 'function' || item.kind === 'type') {
    parts.push(code(item.signature), ...parameters(item.doc), ...links(item.signature))
  }
  // A type with a parameter: which names it has, and what they may be.
  if (item.kind === 'interface' && item.signature.includes('<')) parts.push(code(item.signature))
  if (item.bases.length > 0) {
    const bases = item.bases.map((name) => link(name, page, places))
    parts.push(`Has what ${bases.join(' and ')} has, and:`)
  }
  parts.push(...examples(item.doc))
  const properties = item.members.filter(({ kind }) => kind === 'property')
  if (properties.length > 0) parts.push(table(properties, item, page, places))
  if (item.kind === 'class') {
    for (const member of item.members.filter(({ kind }) => kind !== 'property')) {
      parts.push(`### ${headingOf(item, member)}`, ...prose(member.doc))
      parts.push(code(member.signatures.join('\n')), ...parameters(member.doc))
      parts.push(...links(member.signatures.join('\n')), ...examples(member.doc))
    }
  }
  return parts.join('\n\n')
}

/** `DiT.load`, `dit.sample`, `new RawImage`, `dit[Symbol.asyncDispose]` */
function headingOf({ name }: Export, member: Member): string {
  if (member.kind === 'constructor') return `new ${name}`
  const owner = member.static ? name : (instances[name] ?? name)
  return member.name.startsWith('[') ? `${owner}${member.name}` : `${owner}.${member.name}`
}

function prose({ text }: Doc): string[] {
  return text === '' ? [] : [text]
}

function code(text: string): string {
  return `\`\`\`ts\n${text}\n\`\`\``
}

function examples(doc: Doc): string[] {
  return doc.examples.map((example) => `Example:\n\n${code(example)}`)
}

function parameters(doc: Doc): string[] {
  if (doc.params.length === 0) return []
  return [doc.params.map(({ name, text }) => `- \`${name}\`: ${text}`).join('\n')]
}

function table(
  members: readonly Member[],
  item: Export,
  page: Page,
  places: ReadonlyMap<string, Place>,
): string {
  const rows = members.map(({ name, optional, type, doc }) => {
    const seen = mentions(type, item.name, page, places).join('')
    const about = [cell(doc.text), seen].filter((part) => part !== '').join(' ')
    return `| \`${name}${optional ? '?' : ''}\` | \`${escapePipes(type)}\` | ${about} |`
  })
  return `| | type | |\n|---|---|---|\n${rows.join('\n')}`
}

/** Prose in one cell of a table. */
function cell(text: string): string {
  const paragraphs = text.split(/\n\s*\n/).map(oneLine)
  return escapePipes(paragraphs.join('<br>'))
}

function escapePipes(text: string): string {
  return text.replaceAll('|', '\\|')
}

/** Links to what a type is made of. */
function mentions(
  text: string,
  self: string,
  page: Page,
  places: ReadonlyMap<string, Place>,
): string[] {
  const withoutComments = text.replace(/\/\*\*[\s\S]*?\*\//g, '').replace(/'[^']*'/g, '')
  const names = new Set(withoutComments.match(/\b[A-Za-z]\w*\b/g) ?? [])
  const known = [...names].filter((name) => name !== self && places.has(name))
  if (known.length === 0) return []
  return [`See ${known.map((name) => link(name, page, places)).join(', ')}.`]
}

function link(name: string, page: Page, places: ReadonlyMap<string, Place>): string {
  const { page: target } = places.get(name) as Place
  return `[${name}](${target === page ? '' : target.file}#${anchor(name)})`
}

/** GitHub's name of a heading. */
function anchor(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\w -]/g, '')
    .replaceAll(' ', '-')
}
