// Every snippet of the public documentation is run, as it stands but for what `smaller` says: TypeScript
// and JavaScript are compiled and executed, commands go through a shell, in a folder that has what they
// name. The models come from a hub on loopback, where facebook/DiT-XL-2-256 is a tiny network of 1000
// classes. (docs/api is what docs.test.ts compiles.)
// timeout: 400s
import { spawn } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DiT } from '../lib/index.js'
import { loadSchema, sampleSchema } from '../lib/options.js'
import { packageRoot as root } from '../lib/root.cjs'
import { compile } from './helpers/compile.js'
import { fixture, temporaryFolder } from './helpers/files.js'
import { filesOf, startHub } from './helpers/hub.js'
import { anchorsOf, commandsOf, parseSnippets, snippetsIn } from './helpers/markdown.js'
import { picture } from './helpers/pictures.js'
import { freePort, until } from './helpers/waiting.js'

const markdown = (folder: string) =>
  readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md') && !/(^|\/)(api|node_modules)\//.test(name))
    .map((name) => `${folder}/${name}`)
const documents = ['README.md', 'CHANGELOG.md', ...markdown('docs'), ...markdown('examples')].sort()

/** Those, and pages whose snippets are not for users. */
const pages = [...documents, 'CONTRIBUTING.md', 'demo/README.md']

/** Less work of the same kind: text of a snippet, what takes its place. Each is used. */
const smaller: [text: string, instead: string][] = [
  // A network of 25 thousand parameters instead of 33 million, two steps of four images.
  ['--config DiT-S/4', `--config '{"depth":1,"hidden":32,"heads":2,"patchSize":4}'`],
  ["'DiT-S/4'", '{ depth: 1, hidden: 32, heads: 2, patchSize: 4 }'],
  ['--steps 20000', '--steps 2 --batch-size 2 --global-batch 4'],
  ['steps: 20_000', 'steps: 2, batchSize: 2, globalBatch: 4'],
  ['--epochs 30', '--epochs 1 --batch-size 4 --global-batch 8'],
  // It is at its end then; in the README it was interrupted.
  ['--resume', '--resume --steps 3 --allow-changes steps'],
  ['--count 50000', '--count 12'],
]

/** Commands that are run by another test or by CI: where, and what stands there. */
const elsewhere: [command: string, file: string, text: string][] = [
  ['npm run build:all && npm pack', 'test/pack.test.ts', "output('npm', 'pack'"],
  ['npm install ../dit-native/dit-native-0.1.0.tgz', 'test/pack.test.ts', 'npm install ./'],
  ['npm run demo', 'test/demo.test.ts', "'../demo/demo.ts'"],
  ['npm test', '.ci/run', 'npm test'],
  [
    'npm install fastify @fastify/swagger prom-client lru-cache',
    'lib/cli/serve.ts',
    'npm install fastify @fastify/swagger prom-client lru-cache',
  ],
  // Its packages are this one's own; the test links them.
  ['npm install', 'examples/farm/package.json', '"bullmq"'],
]

const snippets = documents.flatMap((name) => snippetsIn(path.join(root, name), name))
const kindOf = (...kinds: string[]) => snippets.filter(({ kind }) => kinds.includes(kind))
const used = new Set<string>()

function substituted(text: string): string {
  return smaller.reduce((before, [from, to]) => {
    if (before.includes(from)) used.add(from)
    return before.replaceAll(from, to)
  }, text)
}

// ---- the world that the snippets are run in ----

const hub = await startHub()
const env: NodeJS.ProcessEnv = {
  ...process.env,
  HF_ENDPOINT: hub.url,
  HF_HUB_CACHE: temporaryFolder(),
  OMP_WAIT_POLICY: 'passive', // threads that wait leave the processor to others
  PATH: `${makeCommands()}:${process.env.PATH}`,
  CURL_HOME: makeCurlHome(),
}
for (const name of ['HF_TOKEN', 'HF_HUB_OFFLINE', 'DIT_TOKEN']) delete env[name]

/** A folder with `npx`, which finds `dit` as it would where the package is installed. */
function makeCommands(): string {
  const folder = temporaryFolder()
  const npx = path.join(folder, 'npx')
  writeFileSync(
    npx,
    `#!/bin/sh\n[ "$1" = dit ] || exit 127\nshift\nexec '${process.execPath}' '${root}/dist/cli/main.js' "$@"\n`,
  )
  chmodSync(npx, 0o755)
  return folder
}

/** curl's own settings: an answer that is an error is one. */
function makeCurlHome(): string {
  const folder = temporaryFolder()
  writeFileSync(path.join(folder, '.curlrc'), 'fail-with-body\nsilent\nshow-error\n')
  return folder
}

async function fillHub(): Promise<void> {
  const pipeline = fixture('diffusers_pipeline')
  const folder = path.join(temporaryFolder(), 'model')
  const id2label = Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [i, `class ${i}`]))
  Object.assign(id2label, { 207: 'golden retriever', 281: 'tabby, tabby cat' })
  const dit = await DiT.load(pipeline, { numClasses: 1000, id2label, device: 'cpu' })
  await dit.save(folder)
  await dit.close()
  hub.repositories.set('facebook/DiT-XL-2-256', filesOf(folder))
  hub.repositories.set('stabilityai/sd-vae-ft-ema', filesOf(path.join(pipeline, 'vae')))
}

/** A user's project: the package installed beside all that its examples may use, and some files. */
async function makeProject(): Promise<string> {
  const folder = temporaryFolder()
  const modules = path.join(folder, 'node_modules')
  mkdirSync(modules)
  symlinkSync(root, path.join(modules, 'dit-native'))
  for (const name of readdirSync(path.join(root, 'node_modules'))) {
    if (name === '@opentelemetry') continue
    symlinkSync(path.join(root, 'node_modules', name), path.join(modules, name))
  }
  addTelemetry(path.join(modules, '@opentelemetry'))
  for (const [name, classes] of Object.entries({ photos: 2, birds: 20 })) {
    for (let i = 0; i < classes; i++) {
      const place = path.join(folder, name, `class${String(i).padStart(2, '0')}`)
      mkdirSync(place, { recursive: true })
      for (let k = 0; k < 2; k++) await picture(40, 32, 2 * i + k).toFile(`${place}/${k}.jpg`)
    }
  }
  copyFileSync(
    fixture('pt_checkpoint/train_checkpoint.pt'),
    path.join(folder, 'DiT-XL-2-256x256.pt'),
  )
  copyFileSync(fixture('dit_tiny_forward/micro24/config.json'), path.join(folder, 'config.json'))
  return folder
}

/** OpenTelemetry's packages, and in the place of its sdk-node, which brings 80 more, the part used. */
function addTelemetry(folder: string): void {
  const installed = path.join(root, 'node_modules/@opentelemetry')
  mkdirSync(path.join(folder, 'sdk-node'), { recursive: true })
  for (const name of readdirSync(installed)) {
    symlinkSync(path.join(installed, name), path.join(folder, name))
  }
  const base = path.join(installed, 'sdk-trace-base')
  writeFileSync(path.join(folder, 'sdk-node/package.json'), '{ "types": "./index.d.ts" }')
  writeFileSync(
    path.join(folder, 'sdk-node/index.js'),
    `const { BasicTracerProvider } = require('${base}')
const { trace } = require('${path.join(installed, 'api')}')
exports.NodeSDK = class { start() { trace.setGlobalTracerProvider(new BasicTracerProvider()) } }\n`,
  )
  writeFileSync(
    path.join(folder, 'sdk-node/index.d.ts'),
    'export class NodeSDK { constructor(options: { serviceName: string }); start(): void }\n',
  )
}

interface Ended {
  status: number | null
  output: string
}

/** Not spawnSync: the hub is in this process. */
function run(
  folder: string,
  command: string[],
  extra: NodeJS.ProcessEnv = {},
  until?: () => Promise<void>,
) {
  const [file = '', ...args] = command
  const options = { cwd: folder, env: { ...env, ...extra }, detached: true }
  const child = spawn(file, args, options)
  const end = (signal: NodeJS.Signals) => {
    try {
      process.kill(-(child.pid as number), signal)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  return new Promise<Ended>((resolve, reject) => {
    const timer = setTimeout(() => end('SIGKILL'), 90_000)
    child.on('error', reject)
    child.on('exit', () => end('SIGKILL')) // what it left running
    child.on('close', (status) => {
      clearTimeout(timer)
      resolve({ status, output })
    })
    until?.().then(() => end('SIGTERM'), reject)
  })
}

// ---- what is in the documents ----

test('every kind of snippet is known, and none escapes', () => {
  const parse = (text: string) => () => parseSnippets(text, 'x.md')
  assert.is(parse('```ts\nlet a\n```\n')().length, 1)
  assert.throws(parse('```python\nprint()\n```\n'), /x\.md:1: a snippet of the kind 'python'/)
  assert.throws(parse('```\nx\n```\n'), /kind ''/)
  assert.throws(parse('~~~ts\nx\n~~~\n'), /expected ```kind alone/)
  assert.throws(parse('```ts ignore\nx\n```\n'), /expected ```kind alone/)
  assert.throws(parse('- a\n  ```ts\n  x\n  ```\n'), /expected ```kind alone/)
  assert.throws(parse('Text\n\n    npm test\n'), /x\.md:3: an indented block/)
  assert.throws(parse('<pre>npm test</pre>\n'), /as HTML/)
  assert.throws(parse('```text\nnpx dit doctor\n```\n'), /looks like code/)
  assert.throws(parse('```ts\nx\n'), /x\.md:1: it has no end/)
})

test('there are snippets of each kind that is run, most of them in the README', () => {
  assert.ok(kindOf('ts').length >= 4 && kindOf('sh').length >= 6)
  assert.ok(snippets.filter(({ place }) => place.startsWith('README.md')).length >= 8)
})

test('links of the documents lead to files and headings that are there', () => {
  for (const name of pages) {
    const text = readFileSync(path.join(root, name), 'utf8')
    for (const [, target = '', anchor] of text.matchAll(
      /\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)/g,
    )) {
      const file = target === '' ? path.join(root, name) : path.join(root, name, '..', target)
      assert.ok(existsSync(file), `${name}: ${target}`)
      if (anchor === undefined) continue
      const anchors = anchorsOf(readFileSync(file, 'utf8'))
      assert.ok(anchors.has(anchor), `${name}: ${target}#${anchor}`)
    }
  }
})

test('scripts of npm that a document names are there', () => {
  const { scripts } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  for (const name of pages) {
    const text = readFileSync(path.join(root, name), 'utf8')
    for (const [, script = ''] of text.matchAll(/npm run ([\w:-]+)/g)) {
      assert.ok(script in scripts, `${name}: npm run ${script}`)
    }
  }
})

test("the README's tables of options name every option, and no other", () => {
  const text = readFileSync(path.join(root, 'README.md'), 'utf8')
  for (const [call, schema] of [
    ['dit.sample', sampleSchema],
    ['DiT.load', loadSchema],
  ] as const) {
    const [, rows = ''] =
      new RegExp(`^\\| \`${call}\`.*\\n.*\\n((?:\\|.*\\n)+)`, 'm').exec(text) ?? []
    const named = rows
      .split('\n')
      .flatMap((row) => [...(row.split(' | ')[0] ?? '').matchAll(/`(\w+)`/g)])
      .map(([, name]) => name)
    assert.equal(named.sort(), Object.keys(schema.entries).sort(), call)
  }
})

test('commands that are run elsewhere are, and stand in a document', () => {
  const commands = new Set(kindOf('sh').flatMap(({ text }) => commandsOf(text)))
  for (const [command, file, text] of elsewhere) {
    assert.ok(commands.has(command), `no document has ${command}`)
    assert.ok(readFileSync(path.join(root, file), 'utf8').includes(text), `${file}: ${text}`)
  }
})

// ---- JSON, TypeScript, JavaScript ----

for (const { place, text } of kindOf('json')) {
  test(`${place} is JSON`, () => {
    JSON.parse(text)
  })
}

const programs = kindOf('ts', 'js')
await fillHub()
const project = await makeProject()
const fileOf = (index: number) =>
  `snippet${index}.${programs[index]?.kind === 'ts' ? 'mts' : 'mjs'}`

test('programs compile, strictly', () => {
  for (const [i, { text }] of programs.entries()) {
    writeFileSync(path.join(project, fileOf(i)), substituted(text))
  }
  const options = { noUncheckedIndexedAccess: true, allowJs: true, checkJs: true }
  assert.is(compile(project, options), '')
})

for (const [i, { place, text }] of programs.entries()) {
  test(`${place} runs`, async () => {
    const file = path.join(project, fileOf(i))
    const port = await freePort()
    writeFileSync(file, substituted(text).replace(/\bport: 3000\b/, `port: ${port}`))
    const command = [process.execPath, '--import', import.meta.resolve('tsx'), file]
    if (!/\.listen\(|\bserve\(/.test(text)) {
      const { status, output } = await run(project, command)
      assert.is(status, 0, output)
      for (const [, name = ''] of text.matchAll(/toFile\('([^']+)'\)/g)) {
        assert.ok(existsSync(path.join(project, name)), `${name} was not written`)
      }
      return
    }
    // A server: it has to answer, then it is told to end.
    const [, prefix = ''] = /prefix: '([^']+)'/.exec(text) ?? []
    const { output } = await run(project, command, {}, () =>
      answers(`http://127.0.0.1:${port}${prefix}/readyz`),
    )
    assert.not.match(output, /Error/)
  })
}

function answers(url: string): Promise<void> {
  return until(`an answer of ${url}`, () =>
    fetch(url).then(
      (response) => response.ok,
      () => false, // not listening yet
    ),
  )
}

// ---- commands ----

const shell = await makeProject()

/** What runs in the background, and how it is known to be ready. */
function prepared(command: string, port: number): string {
  const known = elsewhere.some(([one]) => one === command)
  if (known) return ': # run elsewhere'
  const here = substituted(command).replace(/\b(3000|6379)\b/g, String(port))
  const ready = (probe: string) => `until ${probe} >/dev/null 2>&1; do sleep 0.1; done`
  if (/^npx dit serve\b/.test(here)) {
    return `${here} &\n${ready(`curl http://127.0.0.1:${port}/readyz`)}`
  }
  if (/^redis-server\b/.test(here)) {
    return `${here}\n${ready(`redis-cli -p ${port} ping`)}`
  }
  return here
}

/** Files that commands say they write. */
function written(script: string): string[] {
  const outputs = [...script.matchAll(/(?:--out|-o) ([^\s;&]+)/g)].map(([, name = '']) => name)
  const converted = [...script.matchAll(/dit convert \S+ (\S+)/g)].map(([, name = '']) => name)
  return [...outputs, ...converted]
}

for (const { place, text } of kindOf('sh')) {
  test(`${place} runs`, async () => {
    const port = await freePort()
    const script = commandsOf(text).map((command) => prepared(command, port))
    if (place.startsWith('examples/farm')) {
      const farm = path.join(root, 'examples/farm')
      const filter = (name: string) => path.basename(name) !== 'node_modules'
      cpSync(farm, shell, { recursive: true, filter })
    }
    const command = ['bash', '-c', `set -euo pipefail\n${script.join('\n')}\n`]
    const { status, output } = await run(shell, command, {
      REDIS_URL: `redis://127.0.0.1:${port}`,
    })
    assert.is(status, 0, `${script.join('\n')}\n${output}`)
    for (const name of written(text)) {
      assert.ok(existsSync(path.join(shell, name)), `${name} was not written\n${output}`)
    }
  })
}

test('every substitution is used', () => {
  assert.equal(
    smaller.map(([from]) => from).filter((from) => !used.has(from)),
    [],
  )
})

test.after(() => hub.close())

test.run()
