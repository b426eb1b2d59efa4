import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { resolveSource } from '../lib/formats/source.js'
import type { LoadProgress, TensorSource } from '../lib/formats/types.js'
import { fixture, rejects, temporaryFolder } from './helpers/files.js'
import { commit, type FakeHub, filesOf, startHub } from './helpers/hub.js'
import { materialise } from './helpers/tensors.js'

let hub: FakeHub
let cache: string

test.before(async () => {
  hub = await startHub()
  const pipeline = filesOf(fixture('diffusers_pipeline'))
  const weights = 'transformer/diffusion_pytorch_model'
  hub.repositories.set(
    'org/dit',
    new Map([
      ...pipeline,
      ['README.md', Buffer.from('read me')],
      [`${weights}.bin`, Buffer.alloc(20_000)],
      ['unet/big.safetensors', Buffer.alloc(20_000)],
      ['transformer/onnx/model.onnx', Buffer.alloc(20_000)],
    ]),
  )
  hub.repositories.set(
    'org/vae',
    new Map(
      ['config.json', 'diffusion_pytorch_model.safetensors'].map((name) => [
        name,
        pipeline.get(`vae/${name}`) as Buffer,
      ]),
    ),
  )
  hub.repositories.set(
    'org/single',
    new Map([
      ['dit.pt', readFileSync(fixture('pt_checkpoint/train_checkpoint.pt'))],
      ['config.json', readFileSync(fixture('dit_tiny_forward/micro24/config.json'))],
    ]),
  )
})
test.before.each(() => {
  cache = temporaryFolder()
  hub.requests.length = 0
  hub.token = undefined
  hub.intercept = undefined
  process.env.HF_ENDPOINT = `${hub.url}/`
  process.env.HF_HUB_CACHE = cache
  delete process.env.HF_TOKEN
  delete process.env.HF_HUB_OFFLINE
})
test.after(() => hub.close())

const values = (tensors: readonly TensorSource[]) =>
  tensors.map((item) => [item.name, materialise(item)])
const folder = () => path.join(cache, 'models--org--dit')
const snapshot = () => path.join(folder(), 'snapshots', commit)
/** Requests of contents of files. */
const downloads = () =>
  hub.requests.filter((request) => / \/(store|org\/\w+\/resolve)\//.test(request))

test('loads what the folder on disk gives, and fetches nothing else', async () => {
  const source = await resolveSource('org/dit')
  const local = await resolveSource(fixture('diffusers_pipeline'))
  assert.equal(source.dit.config, local.dit.config)
  assert.equal(source.id2label, local.id2label)
  assert.equal(values(source.dit.tensors), values(local.dit.tensors))
  assert.equal(values(source.vae?.tensors ?? []), values(local.vae?.tensors ?? []))
  assert.equal(source.hub, { id: 'org/dit', revision: 'main', commit })
  assert.is(
    source.description,
    'org/dit@0123456789ab/transformer/diffusion_pytorch_model.safetensors',
  )
  assert.equal(
    [...filesOf(snapshot()).keys()].sort(),
    [...filesOf(fixture('diffusers_pipeline')).keys()]
      .filter((name) => name !== 'expected.safetensors')
      .sort(),
  )
})

test("keeps files as Python's huggingface_hub does", async () => {
  await resolveSource('org/dit')
  assert.is(readFileSync(path.join(folder(), 'refs/main'), 'utf8'), commit)
  const link = path.join(snapshot(), 'transformer/diffusion_pytorch_model.safetensors')
  assert.ok(lstatSync(link).isSymbolicLink())
  assert.match(readlinkSync(link), /^\.\.\/\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/)
  const blobs = readdirSync(path.join(folder(), 'blobs'))
  assert.is(blobs.length, 6)
  assert.ok(blobs.every((name) => /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(name)))
})

test('a cached model needs one question, offline none', async () => {
  const first = await resolveSource('org/dit')
  hub.requests.length = 0
  await resolveSource('org/dit')
  assert.equal(hub.requests, ['GET /api/models/org/dit/revision/main'])
  hub.requests.length = 0
  await resolveSource('org/dit', { revision: commit })
  assert.equal(hub.requests, [])
  process.env.HF_HUB_OFFLINE = '1'
  const offline = await resolveSource('org/dit')
  assert.equal(hub.requests, [])
  assert.equal(offline, first)
  delete process.env.HF_HUB_OFFLINE
  process.env.HF_ENDPOINT = 'http://127.0.0.1:1'
  assert.equal(await resolveSource('org/dit'), first)
})

test('what is not in the cache cannot be had offline', async () => {
  process.env.HF_HUB_OFFLINE = '1'
  await rejects(
    () => resolveSource('org/dit'),
    'ERR_DIT_FILE',
    /not in the cache and HF_HUB_OFFLINE/,
  )
  delete process.env.HF_HUB_OFFLINE
  process.env.HF_ENDPOINT = 'http://127.0.0.1:1'
  await rejects(
    () => resolveSource('org/dit'),
    'ERR_DIT_FILE',
    /cannot get revision 'main' from http:\/\/127\.0\.0\.1:1: .*Check the network/,
  )
})

test('an incomplete cache is completed', async () => {
  await resolveSource('org/dit', { vae: fixture('diffusers_pipeline') })
  assert.not.ok(readdirSync(snapshot()).includes('vae'))
  hub.requests.length = 0
  const source = await resolveSource('org/dit')
  assert.is(source.vae?.tensors.length, 124)
  assert.ok(
    downloads().length > 0 && downloads().every((request) => !request.includes('transformer')),
  )
})

test('a checkpoint with a config.json, a VAE of its own, another revision', async () => {
  const source = await resolveSource('org/single', { vae: 'org/vae', revision: 'v1/2' })
  assert.is(source.kind, 'torch')
  assert.is(source.dit.config.heads, 2)
  assert.is(source.weights, 'ema')
  assert.match(source.description, /^org\/single@0123456789ab\/dit\.pt, EMA weights$/)
  // The revision is the model's, not the VAE's.
  assert.ok(hub.requests.includes('GET /api/models/org/vae/revision/main'))
  assert.match(source.vae?.description ?? '', /^org\/vae@0123456789ab\/.*\(option vae\)$/)
  assert.is(readFileSync(path.join(cache, 'models--org--single/refs/v1/2'), 'utf8'), commit)
})

test('progress: every file, from some bytes to all', async () => {
  const events: LoadProgress[] = []
  await resolveSource('org/dit', { onProgress: (event) => events.push(event) })
  const files = [...new Set(events.map(({ file }) => file))]
  assert.is(files.length, 6)
  for (const file of files) {
    const own = events.filter((event) => event.file === file)
    const last = own.at(-1)
    assert.ok(last && last.loaded === last.total && last.total > 0, file)
    own.reduce((before, event) => {
      assert.ok(event.loaded >= before.loaded && event.total === before.total)
      return event
    })
  }
  const vae = events.filter(({ file }) => file === 'vae/diffusion_pytorch_model.safetensors')
  assert.ok(vae.length > 2, 'progress within a file')
  assert.equal(events.at(-1)?.filesDone, 6)
  assert.equal(events.at(-1)?.filesTotal, 6)
})

test('a repository that needs a token', async () => {
  hub.token = 'hf_secret'
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /answered 401\. .*set HF_TOKEN/)
  process.env.HF_TOKEN = 'hf_wrong'
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /answered 401/)
  process.env.HF_TOKEN = ' hf_secret\n'
  assert.is((await resolveSource('org/dit')).dit.config.depth, 2)
  process.env.HF_TOKEN = 'secret'
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_OPTION', /must start with 'hf_'/)
})

test('repositories, revisions and files that do not exist', async () => {
  await rejects(
    () => resolveSource('org/none'),
    'ERR_DIT_FILE',
    /org\/none: .*404.*no such repository.*no such local path/,
  )
  await rejects(
    () => resolveSource('org/dit', { revision: 'v9' }),
    'ERR_DIT_FILE',
    /revision 'v9'.*404/,
  )
  await rejects(
    () => resolveSource('org/dit', { revision: '9'.repeat(40) }),
    'ERR_DIT_FILE',
    /list of files.*404/,
  )
  await rejects(
    () => resolveSource('org/dit', { revision: '../main' }),
    'ERR_DIT_OPTION',
    /revision/,
  )
  await rejects(
    () => resolveSource('org/dit', { revision: 'a/../b' }),
    'ERR_DIT_OPTION',
    /revision/,
  )
  hub.repositories.set('org/empty', new Map([['README.md', Buffer.from('nothing')]]))
  await rejects(
    () => resolveSource('org/empty'),
    'ERR_DIT_FILE',
    /org\/empty@0123456789ab has no weights.*'README\.md'/,
  )
  assert.is(hub.requests.filter((request) => request.includes('org/none')).length, 1)
})

test('refused access', async () => {
  hub.intercept = (_request, response) => {
    response.writeHead(403, { 'Content-Type': 'application/json' }).end('{"error":"gated"}')
    return true
  }
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /answered 403\..*accept its terms/)
})

test('a failing hub is asked three times', async () => {
  hub.intercept = (_request, response) => {
    response.writeHead(503).end('maintenance')
    return true
  }
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /answered 503\. Try again later/)
  assert.is(hub.requests.length, 3)
  let left = 2
  hub.intercept = (_request, response) => {
    if (left-- <= 0) return false
    response.writeHead(500).end()
    return true
  }
  assert.is((await resolveSource('org/dit')).dit.config.depth, 2)
})

test('answers that are no answers', async () => {
  hub.intercept = (_request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/html' }).end('<html>a proxy</html>')
    return true
  }
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /not valid JSON/)
  hub.intercept = (_request, response) => {
    response.writeHead(200, { 'Content-Type': 'application/json' }).end('{"sha":"../../x"}')
    return true
  }
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /answered with the commit/)
})

/** Sends part of the body of large files, then does as told. */
function cut(
  times: number,
  then: (request: Parameters<NonNullable<FakeHub['intercept']>>[1]) => void,
) {
  let left = times
  hub.intercept = (request, response) => {
    if (!request.url?.startsWith('/store/') || request.headers.range || left-- <= 0) return false
    response.writeHead(200, { 'Content-Length': 155_400, ETag: '"x"' })
    response.write(Buffer.alloc(70_000))
    then(response)
    return true
  }
}

test('a connection that is cut: once is nothing, always is an error, nothing stays behind', async () => {
  cut(1, (response) => setTimeout(() => response.destroy(), 20))
  const source = await resolveSource('org/dit')
  assert.is(source.dit.tensors.length, 31)
  rmSync(cache, { recursive: true })
  cut(Number.POSITIVE_INFINITY, (response) => setTimeout(() => response.destroy(), 20))
  await rejects(
    () => resolveSource('org/dit'),
    'ERR_DIT_FILE',
    /cannot get transformer\/diffusion_pytorch_model\.safetensors from .*Check the network/,
  )
  assert.not.ok(readdirSync(path.join(folder(), 'blobs')).some((name) => /incomplete/.test(name)))
  hub.intercept = undefined
  assert.is((await resolveSource('org/dit')).dit.tensors.length, 31)
})

test('wrong bytes are not kept', async () => {
  hub.intercept = (request, response) => {
    if (!request.url?.startsWith('/store/') || request.headers.range) return false
    response.writeHead(200, { ETag: '"x"' }).end(Buffer.alloc(155_400))
    return true
  }
  await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /hash does not match/)
  const blobs = readdirSync(path.join(folder(), 'blobs'))
  assert.ok(blobs.every((name) => name.length === 40))
})

test('an abort ends the download with its reason', async () => {
  const controller = new AbortController()
  const reason = new Error('enough')
  cut(1, () => setTimeout(() => controller.abort(reason), 50))
  const result = await resolveSource('org/dit', { signal: controller.signal }).catch(
    (error) => error,
  )
  assert.is(result, reason)
  assert.not.ok(readdirSync(path.join(folder(), 'blobs')).some((name) => /incomplete/.test(name)))
  // While it waits between attempts, too.
  const waiting = new AbortController()
  hub.intercept = (_request, response) => {
    setTimeout(() => waiting.abort(reason), 50)
    response.writeHead(503).end()
    return true
  }
  const start = performance.now()
  const late = await resolveSource('org/single', { signal: waiting.signal }).catch((error) => error)
  assert.is(late, reason)
  assert.ok(performance.now() - start < 400)
})

test('a repository cannot write outside the cache', async () => {
  const pipeline = filesOf(fixture('diffusers_pipeline'))
  hub.repositories.set(
    'org/evil',
    new Map([...pipeline, ['..', Buffer.from('x')], ['transformer/..', Buffer.from('x')]]),
  )
  hub.intercept = (request, response) => {
    if (!/tree\/\w+\?/.test(request.url ?? '')) return false
    const entry = (file: string, oid: string) => ({ type: 'file', path: file, size: 1, oid })
    const list = [
      entry('../../../../evil.safetensors', '1'.repeat(40)),
      entry('/tmp/evil.safetensors', '1'.repeat(40)),
      entry('config.json', '../../../../evil'),
      entry('model.safetensors', '1'.repeat(40)),
      { type: 'file', size: 1 },
      { type: 'file', path: 'x.safetensors', size: -0.5 },
    ]
    response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(list))
    return true
  }
  await rejects(() => resolveSource('org/evil'), 'ERR_DIT_FILE', /no valid hash for config\.json/)
  assert.equal(readdirSync(cache), ['models--org--evil'])
})

test('a folder that exists is preferred to the hub', async () => {
  const place = temporaryFolder()
  const before = process.cwd()
  process.chdir(place)
  try {
    mkdirSync('org/dit', { recursive: true })
    await rejects(() => resolveSource('org/dit'), 'ERR_DIT_FILE', /org\/dit has no weights/)
  } finally {
    process.chdir(before)
  }
  assert.equal(hub.requests, [])
})

test('a cache that cannot be written', async () => {
  const file = path.join(temporaryFolder(), 'file')
  writeFileSync(file, '')
  process.env.HF_HUB_CACHE = file
  await rejects(
    () => resolveSource('org/dit'),
    'ERR_DIT_FILE',
    /a part of the path is a file.*ENOTDIR/,
  )
})

test.run()
