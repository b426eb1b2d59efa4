// The plugin's answers: images, how wrong requests are refused, what it remembers.
// timeout: 120s
import sharp from 'sharp'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { prefers } from '../lib/server/accept.js'
import { appWith, get, post, tinyModel } from './helpers/server.js'

const dit = await tinyModel()
const app = await appWith({ tiny: dit }, { limits: { images: 4, steps: 50 } })
test.after(async () => {
  await app.close()
  await dit.close()
})

/** The pixels of an encoded image. */
async function pixels(bytes: Buffer): Promise<Buffer> {
  return sharp(bytes).raw().toBuffer()
}

test('images in JSON are those of dit.sample', async () => {
  const look = { steps: 5, guidance: 2, sampler: 'ddim', eta: 0.5, guidanceInterval: [0.1, 0.9] }
  const body = { labels: [0, 'Tinca tinca', 'TABBY', 6], seed: 7, ...look }
  const { status, json, headers } = await post(app, '/v1/images', body)
  assert.is(status, 200)
  assert.match(String(headers['content-type']), 'application/json')
  const { id, images, timings } = json()
  assert.match(id, /^[0-9a-f-]{36}$/)
  assert.ok(timings.totalSeconds > 0 && timings.cached === 0)
  const options = { ...look, sampler: 'ddim', guidanceInterval: [0.1, 0.9], seed: 7 } as const
  const wanted = await dit.sample([0, 0, 1, 6], options)
  assert.is(images.length, 4)
  for (const [i, image] of images.entries()) {
    assert.is(image.index, i)
    assert.is(image.seed, 7 + i)
    assert.is(image.label, wanted[i]?.label)
    assert.equal([image.width, image.height, image.mime], [16, 16, 'image/png'])
    const made = await pixels(Buffer.from(image.data, 'base64'))
    assert.equal(made, Buffer.from(wanted[i]?.data as Uint8Array))
  }
  assert.equal(
    images.map(({ className }: { className?: string }) => className),
    ['tench, Tinca tinca', 'tench, Tinca tinca', 'tabby, tabby cat', undefined],
  )
})

test('one image as bytes, by Accept and by format', async () => {
  const body = { labels: 'tabby', seed: '18446744073709551615', steps: 3 }
  const png = await post(app, '/v1/images', body, { accept: 'image/png' })
  assert.is(png.headers['content-type'], 'image/png')
  assert.is(png.headers['x-dit-seed'], '18446744073709551615')
  assert.is(png.headers['x-dit-label'], '1')
  assert.is(png.headers['x-dit-class'], 'tabby%2C%20tabby%20cat')
  const [wanted] = await dit.sample(1, { seed: 2n ** 64n - 1n, steps: 3 })
  assert.equal(await pixels(png.bytes), Buffer.from(wanted?.data as Uint8Array))

  const webp = await post(app, '/v1/images', { ...body, format: 'webp' })
  assert.is(webp.headers['content-type'], 'image/webp')
  assert.is((await sharp(webp.bytes).metadata()).format, 'webp')
  const accepted = await post(app, '/v1/images', body, { accept: 'image/webp, image/png;q=0.5' })
  assert.is(accepted.headers['content-type'], 'image/webp')

  const json = await post(app, '/v1/images', { ...body, format: 'json' }, { accept: 'image/png' })
  assert.is(json.json().images[0].seed, '18446744073709551615')
  assert.is(json.json().images[0].mime, 'image/png')
  const two = await post(app, '/v1/images', { labels: [1, 2], steps: 2, format: 'webp' })
  assert.equal(
    two.json().images.map(({ mime }: { mime: string }) => mime),
    ['image/webp', 'image/webp'],
  )
})

test('seeds: random, counted from one, or one each', async () => {
  const random = await post(app, '/v1/images', { labels: [1, 1], steps: 1 })
  const [first, second] = random.json().images
  assert.is(second.seed, first.seed + 1)
  const given = await post(app, '/v1/images', { labels: [1, 2], seeds: [9, '9'], steps: 1 })
  assert.equal(
    given.json().images.map(({ seed }: { seed: number }) => seed),
    [9, 9],
  )
  const seed = first.seed
  const again = await post(app, '/v1/images', { labels: [1, 1], steps: 1, seed })
  assert.equal(again.json().images, random.json().images)
})

const wrong: [name: string, body: unknown, status: number, message: RegExp][] = [
  ['no body', undefined, 400, /Expected an object for the body/],
  ['null', null, 400, /body/],
  ['an array', [1], 400, /Expected an object for the body/],
  ['no labels', {}, 400, /Expected labels in the body/],
  ['no label', { labels: [] }, 400, /labels/],
  ['too many labels', { labels: [1, 1, 1, 1, 1] }, 400, /Expected 1 to 4 class numbers or names/],
  ['a negative label', { labels: -1 }, 400, /Expected a class from 0 to 5, or 6 for no class/],
  ['a fractional label', { labels: [1.5] }, 400, /but got 1.5/],
  ['a label of 10⁹', { labels: [1e9] }, 400, /but got 1000000000/],
  ['an object as label', { labels: [{}] }, 400, /labels/],
  ['a long name', { labels: ['x'.repeat(2000)] }, 400, /labels/],
  ['negative steps', { labels: 1, steps: -3 }, 400, /Expected an integer from 1 to 50 for steps/],
  ['no steps', { labels: 1, steps: 0 }, 400, /steps/],
  ['fractional steps', { labels: 1, steps: 2.5 }, 400, /steps/],
  ['10⁹ steps', { labels: 1, steps: 1e9 }, 400, /steps but got 1000000000/],
  ['steps as text', { labels: 1, steps: '3' }, 400, /steps/],
  [
    'an unknown field',
    { labels: 1, stps: 3 },
    400,
    /There is no option 'stps'. Did you mean 'steps'/,
  ],
  ['an unknown sampler', { labels: 1, sampler: 'euler' }, 400, /sampler/],
  ['a negative seed', { labels: 1, seed: -1 }, 400, /seed/],
  ['a seed of 2^64', { labels: 1, seed: '18446744073709551616' }, 400, /seed/],
  ['seed and seeds', { labels: 1, seed: 1, seeds: [1] }, 400, /seed or seeds/],
  ['too few seeds', { labels: [1, 2], seeds: [1] }, 400, /Expected 2 seeds/],
  ['eta that nothing uses', { labels: 1, eta: 0.5 }, 400, /eta/],
  ['endless guidance', { labels: 1, guidance: 1e39 }, 400, /guidance/],
  ['an interval backwards', { labels: 1, guidanceInterval: [0.9, 0.1] }, 400, /guidanceInterval/],
  ['too high a priority', { labels: 1, priority: 101 }, 400, /priority/],
  ['a deadline of none', { labels: 1, deadline: 0 }, 400, /deadline/],
  ['an unknown model', { labels: 1, model: 'xl' }, 404, /There are: tiny/],
  ['an unknown name', { labels: ['cheese'] }, 422, /No class is called 'cheese'/],
  ['a name of two classes', { labels: ['crane'] }, 422, /Several classes fit 'crane'/],
]
for (const [name, body, status, message] of wrong) {
  test(`refused: ${name}`, async () => {
    const answer = await post(app, '/v1/images', body)
    assert.is(answer.status, status, answer.body)
    const { error } = answer.json()
    assert.match(error.message, message)
    assert.type(error.code, 'string')
    assert.is(error.type, 'invalid_request_error')
    assert.not.match(answer.body, /\/lib\/|\.ts:|node_modules/)
  })
}

test('suggestions for names that are near', async () => {
  const near = await post(app, '/v1/images', { labels: ['taby cat'] })
  const [best] = near.json().error.suggestions
  assert.equal(best, { id: 1, name: 'tabby, tabby cat' })
  const several = await post(app, '/v1/images', { labels: ['crane'] })
  assert.equal(
    several.json().error.suggestions.map(({ id }: { id: number }) => id),
    [3, 4],
  )
})

test('bodies that are no JSON, too large, or poisoned', async () => {
  const send = (payload: string, headers: Record<string, string> = {}) =>
    app.inject({
      method: 'POST',
      url: '/v1/images',
      payload,
      headers: { 'content-type': 'application/json', ...headers },
    })
  for (const text of ['{', '{"labels":1', '', '\0', '{"labels":1}}', '[[['.repeat(1000)]) {
    const { statusCode, body } = await send(text)
    assert.is(statusCode, 400, text)
    assert.type(JSON.parse(body).error.message, 'string')
  }
  assert.is((await send('{"labels":1,"__proto__":{"steps":1}}')).statusCode, 400)
  assert.is((await send('{"labels":1,"constructor":{"prototype":{}}}')).statusCode, 400)
  const huge = await send(JSON.stringify({ labels: 'x'.repeat(70_000) }))
  assert.is(huge.statusCode, 413)
  assert.type(JSON.parse(huge.body).error.code, 'string')
  const form = await send('labels=1', { 'content-type': 'application/x-www-form-urlencoded' })
  assert.is(form.statusCode, 415)
  // What a page of another site could send without asking first.
  const simple = await send('{"labels":1}', { 'content-type': 'text/plain' })
  assert.is(simple.statusCode, 415)
})

test('OpenAI: the prompt names a class', async () => {
  const url = '/v1/images/generations'
  const prompts: [string, number | undefined][] = [
    ['tench', 0],
    ['a photo of a Tabby Cat, sleeping', 1],
    ['tiger cats', 2],
    ['tiger-cat!', 2],
    ['class 5', 5],
    ['4', 4],
    ['6', 6],
    ['a crane', undefined],
    ['tiger', undefined],
    ['7', undefined],
    ['something else', undefined],
  ]
  for (const [prompt, label] of prompts) {
    const answer = await post(app, url, { prompt, seed: 1, steps: 1 })
    assert.is(answer.status, label === undefined ? 422 : 200, `${prompt}: ${answer.body}`)
    if (label === undefined) continue
    const [{ b64_json, seed }] = answer.json().data
    assert.is(seed, 1)
    const [wanted] = await dit.sample(label, { seed: 1, steps: 1 })
    const same = Buffer.compare(
      await pixels(Buffer.from(b64_json, 'base64')),
      wanted?.data as Buffer,
    )
    assert.is(same, 0, prompt)
  }
  const { suggestions } = (await post(app, url, { prompt: 'a tiger' })).json().error
  assert.is(suggestions[0].id, 2)
})

test("OpenAI: a client's usual fields", async () => {
  const url = '/v1/images/generations'
  const usual = { prompt: 'tabby', n: 2, size: '16x16', quality: 'auto', user: 'u1', model: 'tiny' }
  const answer = await post(app, url, { ...usual, steps: 2, response_format: 'b64_json' })
  assert.is(answer.status, 200, answer.body)
  const { created, size, output_format, data } = answer.json()
  assert.ok(Math.abs(created - Date.now() / 1000) < 60)
  assert.equal([size, output_format, data.length], ['16x16', 'png', 2])
  assert.is(data[0].revised_prompt, 'tabby, tabby cat')
  const url1 = await post(app, url, {
    prompt: 'tabby',
    steps: 1,
    response_format: 'url',
    output_format: 'webp',
    n: null,
    size: 'auto',
  })
  assert.match(url1.json().data[0].url, /^data:image\/webp;base64,/)
  for (const body of [
    { prompt: 'tabby', size: '1024x1024' },
    { prompt: 'tabby', n: 5 },
    { prompt: 'tabby', n: 0 },
    { prompt: '' },
    { prompt: '   ' },
    { prompt: 7 },
    {},
    { prompt: 'tabby', quality: 'hd' },
    { prompt: 'tabby', response_format: 'file' },
    { prompt: 'tabby', steps: 51 },
    { prompt: 'tabby', stream: true },
  ]) {
    const { status, json } = await post(app, url, body)
    assert.is(status, 400, JSON.stringify(body))
    assert.is(json().error.type, 'invalid_request_error')
  }
  const size2 = await post(app, url, { prompt: 'tabby', size: '1024x1024' })
  assert.match(size2.json().error.message, "'16x16'")
})

test('models and their classes', async () => {
  const list = (await get(app, '/v1/models')).json()
  assert.is(list.object, 'list')
  const [model] = list.data
  assert.equal([model.id, model.object, model.owned_by], ['tiny', 'model', 'dit-native'])
  assert.equal(model.dit.image, { width: 16, height: 16, channels: 3 })
  assert.equal(model.dit.limits.images, 4)
  assert.equal(model.dit.samplers, ['dpm++', 'ddim', 'ddpm'])
  assert.equal((await get(app, '/v1/models/tiny')).json(), model)
  assert.is((await get(app, '/v1/models/none')).status, 404)
  const classes = (await get(app, '/v1/models/tiny/classes')).json().data
  assert.is(classes.length, 6)
  assert.equal(classes[5], { id: 5, name: 'class 5' })
  const found = async (query: string) => {
    const { data } = (await get(app, `/v1/models/tiny/classes?${query}`)).json()
    return data.map(({ id }: { id: number }) => id)
  }
  assert.equal(await found('q=cat'), [1, 2])
  assert.equal(await found('q=tabby%20cat'), [1])
  assert.equal(await found('q=ti'), [2, 0])
  assert.equal(await found('q=nothing'), [])
  assert.equal(await found('limit=2'), [0, 1])
  for (const query of ['limit=0', 'limit=x', 'q=a&q=b', `q=${'x'.repeat(201)}`]) {
    assert.is((await get(app, `/v1/models/tiny/classes?${query}`)).status, 400, query)
  }
})

test('images with a seed are remembered, within bounds', async () => {
  const served = await appWith(dit, { cacheBytes: 6000 })
  const ask = async (body: object, headers = {}) => post(served, '/v1/images', body, headers)
  const first = (await ask({ labels: [1, 2], seed: 3, steps: 2 })).json()
  assert.is(first.timings.cached, 0)
  // With the defaults spelled out, in another order, and beside one that is new.
  const look = { steps: 2, guidance: 4, sampler: 'dpm++', eta: 0, guidanceInterval: [0, 1] }
  const again = (await ask({ labels: [2, 1, 3], seeds: [4, 3, 9], ...look })).json()
  assert.is(again.timings.cached, 2)
  assert.equal(again.images[0].data, first.images[1].data)
  assert.equal(again.images[1].data, first.images[0].data)
  for (const other of [
    { steps: 3 },
    { guidance: 3 },
    { seed: 5 },
    { labels: 2 },
    { format: 'webp' },
  ]) {
    const answer = (await ask({ labels: 1, seed: 3, steps: 2, format: 'json', ...other })).json
    const cached = 'format' in other ? 0 : answer().timings.cached
    assert.is(cached, 0, JSON.stringify(other))
  }
  assert.is((await ask({ labels: 1, steps: 2 })).json().timings.cached, 0, 'a random seed')
  for (let seed = 100; seed < 140; seed++) await ask({ labels: 1, seed, steps: 1 })
  const text = (await get(served, '/metrics')).body
  const bytes = Number(/^dit_cache_bytes (\d+)$/m.exec(text)?.[1])
  assert.ok(bytes > 500 && bytes <= 6000, String(bytes))
  assert.match(text, /^dit_cache_hits_total 2$/m)
  assert.is((await ask({ labels: 1, seed: 3, steps: 2 })).json().timings.cached, 0, 'forgotten')
  await served.close()

  const forgetful = await appWith(dit, { cacheBytes: 0 })
  for (let i = 0; i < 2; i++) {
    const answer = await post(forgetful, '/v1/images', { labels: 1, seed: 3, steps: 1 })
    assert.is(answer.json().timings.cached, 0)
  }
  await forgetful.close()
})

test('what Accept prefers', () => {
  const types = ['application/json', 'image/png', 'image/webp'] as const
  const cases: [string | undefined, string][] = [
    [undefined, 'application/json'],
    ['*/*', 'application/json'],
    ['', 'application/json'],
    ['image/png', 'image/png'],
    ['image/*', 'image/png'],
    ['image/*;q=0.5, */*;q=0.8', 'application/json'],
    ['image/avif,image/webp,image/png;q=0.8,*/*;q=0.5', 'image/webp'],
    ['IMAGE/PNG; q=0.2, application/json;q=0.1', 'image/png'],
    ['text/html', 'application/json'],
    ['image/png;q=x', 'application/json'],
  ]
  for (const [accept, wanted] of cases) {
    assert.is(prefers(accept, types), wanted, accept)
  }
})

test.run()
