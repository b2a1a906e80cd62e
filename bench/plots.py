"""Pictures of results/ for the docs, into nbs/images/: readable on a light and on a dark page"""
import json

import matplotlib
from client import PERCENT
from harness import RESULTS, ROOT, middle

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

IMAGES = ROOT/'nbs'/'images'
GREY = '#808080'
COLOURS = {'ours': '#e8590c', 'C floor': GREY, 'uvloop floor': GREY, 'nchan': '#2b8a3e', 'better-sse': '#1c7ed6', 'Starlette': '#ae3ec9', 'sse-starlette': '#c99700'}
plt.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'bench', 'font.size': 11, 'font.family': 'sans-serif', 'axes.spines.top': False, 'axes.spines.right': False,
    'text.color': GREY, 'legend.frameon': False} | {k: GREY for k in ('axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color')})


def newest():
    "Results of the newest Python that was measured"
    path = max(RESULTS.glob('python3.*.json'), key=lambda p: int(p.stem.rpartition('.')[2]))
    return path.stem.replace('python', 'Python '),json.loads(path.read_text())


def picture(name, draw, xlabel, ylabel):
    fig,ax = plt.subplots(figsize=(7.2, 4))
    draw(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(color=GREY, alpha=.2)
    ax.legend()
    fig.savefig(IMAGES/f'{name}.svg', transparent=True, bbox_inches='tight', metadata=dict(Date=None))
    plt.close(fig)


def style(name): return dict(color=COLOURS[name], label='this library' if name=='ours' else name, linewidth=2.6 if name=='ours' else 1.6, linestyle={'C floor': ':', 'uvloop floor': '--'}.get(name, '-'))


def by_cost(found): return sorted(found.items(), key=lambda o: -middle(o[1]['us_5000'])[0])


def cost(found, picture_name, scale):
    "Microseconds against the number of clients, with the spread of the rounds"
    def draw(ax):
        for name,row in by_cost(found):
            points = sorted((int(k[3:]), middle(v)) for k,v in row.items() if k.startswith('us_'))
            xs,ys = zip(*points, strict=True)
            ax.plot(xs, [y[0] for y in ys], marker='o', markersize=4, **style(name))
            ax.fill_between(xs, [y[1] for y in ys], [y[2] for y in ys], color=COLOURS[name], alpha=.12, linewidth=0)
        ax.set_xscale(scale)
        ax.set_xticks(xs, [f'{x:,}' for x in xs])
        ax.minorticks_off()
        ax.set_ylim(0)
    picture(picture_name, draw, 'clients', 'µs of the server for each delivery')


def latency(found, n=5000):
    "How many of the clients have the message, against time"
    def draw(ax):
        for name,row in by_cost(found): ax.plot(row[f'ms_{n}'], PERCENT, **style(name))
        ax.set_xlim(0)
        ax.set_ylim(0, 101)
    picture('speed-latency', draw, 'ms after the broadcast', f'% of {n:,} clients that have it')


if __name__=='__main__':
    IMAGES.mkdir(exist_ok=True)
    python,data = newest()
    if 'fanout' in data:
        cost(data['fanout']['found'], 'speed-cost', 'log')
        latency(data['fanout']['found'])
    if 'growth' in data: cost(data['growth']['found'], 'speed-growth', 'linear')
    print('->', ', '.join(p.relative_to(ROOT).as_posix() for p in sorted(IMAGES.glob('speed-*.svg'))))
