// @ts-check
// The documentation's only script: search, the menu on narrow screens, and a button for pictures that move.

/** @typedef {{page: string, head: string, url: string, text: string}} Entry */

const up = document.currentScript?.dataset.up ?? ''
const input = /** @type {HTMLInputElement} */ (document.getElementById('search'))
const list = /** @type {HTMLUListElement} */ (document.getElementById('found'))
const menu = /** @type {HTMLButtonElement} */ (document.querySelector('.menu'))
const nav = /** @type {HTMLElement} */ (document.getElementById('nav'))
const MOST = 12

/** The list of pages is longer than the window: show the part where this page stands */
function showCurrent() {
  const here = /** @type {HTMLElement|null} */ (nav.querySelector('[aria-current]'))
  if (here && here.offsetTop + here.offsetHeight > nav.clientHeight) nav.scrollTop = here.offsetTop - nav.clientHeight / 2
}

document.documentElement.classList.add('js')
menu.addEventListener('click', () => { menu.setAttribute('aria-expanded', String(nav.classList.toggle('open'))); showCurrent() })
showCurrent()
document.addEventListener('keydown', e => { if (e.key === 'Escape' && nav.classList.contains('open')) { menu.click(); menu.focus() } })

/** The index is a script, not fetched data: it also loads from a folder that no server serves. @type {Promise<Entry[]>|undefined} */
let index
function load() {
  return index ??= new Promise((resolve, reject) => {
    const s = document.createElement('script')
    s.src = up + 'search-index.js'
    s.onload = () => resolve(/** @type {any} */ (window).searchIndex)
    s.onerror = () => { index = undefined; reject(new Error('search-index.js did not load')) }
    document.head.append(s)
  })
}

/** How well an entry answers; every word must occur somewhere. @param {Entry} e @param {string[]} words */
function score(e, words) {
  const head = e.head.toLowerCase(), page = e.page.toLowerCase(), text = e.text.toLowerCase()
  let sum = 0
  for (const w of words) {
    const at = head.indexOf(w)
    if (head === w) sum += 12
    else if (at === 0 || at > 0 && /[\W_]/.test(head[at - 1])) sum += 7
    else if (at > 0) sum += 4
    else if (page.includes(w)) sum += 3
    else if (text.includes(w)) sum += 1
    else return 0
  }
  return sum
}

/** @param {string} tag @param {string} text */
function make(tag, text) {
  const el = document.createElement(tag)
  el.textContent = text
  return el
}

/** Where the first word stands, with what is around it. @param {string} text @param {string} word */
function around(text, word) {
  const at = text.indexOf(' ', text.toLowerCase().indexOf(word) - 40)
  return at > 0 && text.toLowerCase().indexOf(word) > 40 ? '… ' + text.slice(at + 1, at + 160) : text.slice(0, 160)
}

function close() {
  list.hidden = true
  input.setAttribute('aria-expanded', 'false')
  input.removeAttribute('aria-activedescendant')
}

/** @param {number} n */
function select(n) {
  const items = [...list.querySelectorAll('[role=option]')]
  if (!items.length) return
  n = (n + items.length) % items.length
  items.forEach((li, i) => li.setAttribute('aria-selected', String(i === n)))
  input.setAttribute('aria-activedescendant', items[n].id)
  items[n].scrollIntoView({block: 'nearest'})
}
function selected() { return [...list.children].findIndex(li => li.getAttribute('aria-selected') === 'true') }

async function search() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean)
  if (!words.length) return close()
  const typed = input.value, entries = await load()
  if (typed !== input.value) return  // a later keystroke asks anew
  const hits = entries.map((e, i) => ({e, i, s: score(e, words)})).filter(h => h.s).sort((a, b) => b.s - a.s || a.i - b.i).slice(0, MOST)
  list.replaceChildren(...hits.map(({e}, i) => {
    const li = make('li', '')
    li.id = `found-${i}`
    li.setAttribute('role', 'option')
    li.dataset.url = up + e.url
    li.append(make('span', e.page), make('b', e.head || e.page), make('p', around(e.text, words[0])))
    return li
  }))
  if (!hits.length) {
    const none = make('li', 'Nothing found')
    none.className = 'none'
    list.append(none)
  }
  list.hidden = false
  input.setAttribute('aria-expanded', 'true')
  select(0)
}

/** @param {Element|null|undefined} li */
function go(li) {
  const url = /** @type {HTMLElement|null} */ (li)?.dataset.url
  if (!url) return
  close()
  input.blur()
  location.href = url
}

input.addEventListener('input', search)
input.addEventListener('focus', () => { load().catch(() => {}); if (input.value) search() })
input.addEventListener('blur', close)
input.addEventListener('keydown', e => {
  if (e.key === 'ArrowDown') select(selected() + 1)
  else if (e.key === 'ArrowUp') select(selected() - 1)
  else if (e.key === 'Enter') go(list.children[selected()])
  else if (e.key === 'Escape') { input.value = ''; close(); input.blur() }
  else return
  e.preventDefault()
})
list.addEventListener('mousedown', e => e.preventDefault())  // keeps the focus, and so the list, until the click
list.addEventListener('click', e => go(/** @type {Element} */ (e.target).closest('li')))
document.addEventListener('keydown', e => {
  const typing = /** @type {Element} */ (e.target).matches?.('input, textarea, select, [contenteditable]')
  if (e.key === '/' && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); input.focus() }
})

for (const box of document.querySelectorAll('.moving')) {
  const source = /** @type {HTMLSourceElement} */ (box.querySelector('source'))
  const button = /** @type {HTMLButtonElement} */ (make('button', ''))
  let still = matchMedia(source.media).matches
  const show = () => {
    source.media = still ? 'all' : 'not all'  // The still picture is the source; without it the one that moves is left
    button.textContent = still ? 'Play' : 'Stop'
    button.setAttribute('aria-label', still ? 'Play the picture' : 'Stop the picture')
  }
  button.type = 'button'
  button.addEventListener('click', () => { still = !still; show() })
  show()
  box.append(button)
}
