"""A Tornado application, which gunicorn's tornado worker serves as it is."""

import tornado.web

from gunicorn_cluster_ext import worker_id


class Names(tornado.web.RequestHandler):
    def get(self) -> None:
        self.write(str(worker_id()))


app = tornado.web.Application([("/", Names)])
