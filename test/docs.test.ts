// The API reference: made of the doc comments, complete, up to date, and its examples are TypeScript
// that compiles.
// timeout: 120s
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { firstSentence, parseDoc } from '../scripts/docs/comments.js'
import { renderPages } from '../scripts/docs/markdown.js'
import { entryPoints, folder, root } from '../scripts/docs/package.js'
import { compile, userProject } from './helpers/compile.js'
import { anchorsOf } from './helpers/markdown.js'

const entries = entryPoints()
const pages = renderPages(entries)
const everything = entries.flatMap(({ exports }) => exports)

test('docs/api is what `npm run docs` makes', () => {
  assert.equal(readdirSync(folder).sort(), [...pages.keys()].sort())
  for (const [name, text] of pages) {
    const same = readFileSync(path.join(folder, name), 'utf8') === text
    assert.ok(same, `docs/api/${name} is out of date: run \`npm run docs\``)
  }
})

test('links lead to headings that are there', () => {
  const anchors = (page: string) => anchorsOf(pages.get(page) ?? '')
  let links = 0
  for (const [page, text] of pages) {
    for (const [, file = '', anchor] of text.matchAll(/\]\(([\w.]*)(?:#([\w-]+))?\)/g)) {
      const target = file === '' ? page : file
      assert.ok(pages.has(target), `${page}: ${target}`)
      if (anchor) assert.ok(anchors(target).has(anchor), `${page}: ${target}#${anchor}`)
      links++
    }
  }
  assert.ok(links > 100)
})

test('everything that is exported is explained', () => {
  const bare: string[] = []
  for (const { name, kind, doc, members } of everything) {
    if (doc.text === '') bare.push(name)
    if (kind === 'function' && doc.params.length === 0) bare.push(`${name}'s parameters`)
    for (const member of members) {
      // The literal that tells events apart says what it is.
      const isTag = /^(type|phase)$/.test(member.name) && /^'\w+'$/.test(member.type)
      if (member.doc.text === '' && !isTag) bare.push(`${name}.${member.name}`)
    }
  }
  assert.equal(bare, [])
})

test('what is called, and the options it is called with, have an example', () => {
  const without: string[] = []
  for (const { name, kind, doc, members } of everything) {
    const isInput = kind === 'interface' && /(Options|Input)$/.test(name)
    if ((kind === 'class' || kind === 'function' || isInput) && doc.examples.length === 0) {
      without.push(name)
    }
    const called = members.filter((one) => kind === 'class' && one.kind === 'method')
    without.push(
      ...called.filter((one) => one.doc.examples.length === 0).map((one) => `${name}.${one.name}`),
    )
  }
  assert.equal(without, [])
})

test('what may fail says with which code', () => {
  const asynchronous = everything.flatMap(({ name, kind, members }) =>
    members
      .filter(
        ({ signatures }) =>
          kind === 'class' && /\): (Promise|AsyncGenerator)</.test(signatures.join()),
      )
      .map((member) => ({ name: `${name}.${member.name}`, text: member.doc.text })),
  )
  const silent = asynchronous
    .filter(({ name }) => !/\.close$|asyncDispose/.test(name))
    .filter(({ text }) => !/ERR_DIT_|what `sample` rejects with/.test(text))
  assert.equal(
    silent.map(({ name }) => name),
    [],
  )
})

// ---- examples ----

/** An example as a module: all that the package exports, a model and a trainer are there. */
function moduleOf(example: string): string {
  const imports = entries.map(({ specifier, exports }) => {
    const names = exports.map(({ name, kind }) => {
      return kind === 'class' || kind === 'function' ? name : `type ${name}`
    })
    return `import { ${names.join(', ')} } from '${specifier}'`
  })
  // An example's own imports are a module's, not a function's.
  const own = example.match(/^import .*$/gm) ?? []
  const body = example.replace(/^import .*$/gm, '')
  return [
    ...(own.length > 0 ? own : imports),
    ...(own.some((line) => line.includes("'sharp'")) ? [] : ["import sharp from 'sharp'"]),
    ...(own.length > 0 ? [] : ['declare const dit: DiT', 'declare const trainer: Trainer']),
    `export async function example() {\n${body}\n}`,
  ].join('\n')
}

function compileAll(examples: ReadonlyMap<string, string>): string {
  const { peerDependencies } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  const place = userProject('sharp', ...Object.keys(peerDependencies))
  for (const [name, text] of examples) writeFileSync(path.join(place, `${name}.mts`), text)
  return compile(place)
}

test('examples compile', () => {
  const examples = new Map<string, string>()
  for (const { name, doc, members } of everything) {
    for (const [i, example] of doc.examples.entries())
      examples.set(`${name}.${i}`, moduleOf(example))
    for (const member of members) {
      for (const [i, example] of member.doc.examples.entries()) {
        examples.set(`${name}.${member.name}.${i}`, moduleOf(example))
      }
    }
  }
  assert.ok(examples.size >= 30, `${examples.size} examples`)
  assert.is(compileAll(examples), '')
})

test('the compiler would notice', () => {
  const wrong = moduleOf("const options: SampleOptions = { guidance: '4' }")
  assert.match(compileAll(new Map([['wrong', wrong]])), /wrong\.mts\(.*error TS2322/)
})

test('an entry point that the outline does not name has a page of its own', () => {
  const [main] = entries
  assert.ok(main !== undefined)
  const [tensor] = main.exports.filter(({ name }) => name === 'Tensor')
  const serve = { ...tensor, name: 'serve', signature: 'function serve(tensor: Tensor): void' }
  const exports = [
    { ...serve, kind: 'function' as const, members: [] },
    ...(tensor ? [tensor] : []),
  ]
  const both = renderPages([main, { specifier: 'dit-native/other', exports } as typeof main])
  assert.equal([...both.keys()].slice(-1), ['other.md'])
  const page = both.get('other.md') ?? ''
  assert.match(page, /^# dit-native\/other\n/m)
  assert.match(page, /^## serve\n/m)
  // What both export is explained once.
  assert.match(page, /See \[Tensor\]\(sampling\.md#tensor\)/)
  assert.not.match(page, /^## Tensor/m)
  const homeless = { ...main, exports: [...main.exports, { ...tensor, name: 'Nowhere' }] }
  assert.throws(() => renderPages([homeless as typeof main]), /On no page: Nowhere\. Add them/)
})

test('comments are taken apart', () => {
  const doc = parseDoc(`/**
   * What it does, i.e. this. And more.
   *
   * @param a The first,
   * which is long.
   *
   * Rejects.
   *
   * @example
   * one()
   *
   * two()
   */`)
  assert.equal(doc, {
    text: 'What it does, i.e. this. And more.\n\nRejects.',
    params: [{ name: 'a', text: 'The first, which is long.' }],
    examples: ['one()\n\ntwo()'],
    internal: false,
  })
  assert.is(firstSentence(doc.text), 'What it does, i.e. this.')
  assert.ok(parseDoc('/** Hidden. @internal */').internal)
  assert.throws(() => parseDoc('/** @nonsense */'), /no rule for @nonsense/)
})

test.run()
