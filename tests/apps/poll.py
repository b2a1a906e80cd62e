# A poll: a vote for each visitor, bars that move in all open pages, who is here. Run it: `uvicorn poll:app --workers 2`
from fasthtml.common import *
from cjm_fasthtml_sse.common import *

question, options = 'What shall we build?', ['A boat', 'A kite', 'A hut', 'A robot']
app, rt = fast_app(on_startup=[lambda: write('create table if not exists vote(visitor text primary key, option text)')])
sse = setup_sse(app, SSEBroadcastManager(backend='sqlite:///poll.db'))

def write(sql, *values):
    with sse.transaction() as db: db.execute(sql, values), sse.changed('votes')

@sse.live('votes')
def chart():
    with sse.reading() as db: votes = dict(db.execute('select option, count(*) from vote group by option').fetchall())
    def button(o, n): return Button(f'{o}: {n}', hx_post=vote.to(option=o), hx_swap='none')
    return Div(*[(button(o, n := votes.get(o, 0)), Progress(value=n, max=sum(votes.values()) or 1)) for o in options])

@sse.live('sse:presence')
def people(): return P(len(sse.online), ' here', id='people')

@rt
def index(session):
    session.setdefault('auth', unqid())
    return Titled(question, chart(), people(), Button('Restart', hx_post=restart, hx_swap='none'))

@app.post
def vote(session, option: str): write('insert or replace into vote values(?, ?)', session['auth'], option)

@app.post
def restart(): write('delete from vote')
